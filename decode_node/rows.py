"""Requests of the decode guest as rows of steps: what policies see of them, and their next tokens.

Most steps are steady: nobody waits, whoever runs goes on. A policy that then decodes all that run,
whatever came before, need not be asked (`PolicyEntry.is_steady`), and no views are made for it: of
256 requests they took 0.25 ms, the plan and its check 0.14 ms. Pure.
"""

from collections.abc import Mapping, Sequence

from decode_node.entry import Entry, Phase
from node.resident import Resident
from node.runner import SequenceStep
from node.state import NodeState
from scheduling.views import RequestKey, SequenceView


class DecodeRows:
    """Over the guest's `entries`, in the order in which their commands came."""

    def __init__(self, state: NodeState, entries: Mapping[RequestKey, Entry]) -> None:
        self._state = state
        self._entries = entries
        self._running: list[Resident] = []  # at the last steady step
        self._oldest_first: list[Resident] = []  # the same
        self._keys: tuple[RequestKey, ...] = ()  # of these

    def views(self, phase: Phase) -> tuple[SequenceView, ...]:
        """All requests of a phase."""
        residents = [e.resident for e in self._entries.values() if e.phase is phase]
        if not self._state.pool.sets_aside:
            return tuple([r.view() for r in residents])
        set_aside = self._state.pool.num_set_aside
        return tuple([r.view(num_set_aside=set_aside(r.key)) for r in residents])

    def steady(self) -> tuple[RequestKey, ...] | None:
        """All that run, oldest first as policies sort them, where nobody waits or is swapped and
        there are pages for all their next tokens; else None."""
        running, waiting, swapped = Phase.RUNNING, Phase.WAITING, Phase.SWAPPED
        residents = []
        for entry in self._entries.values():
            phase = entry.phase
            if phase is running:
                residents.append(entry.resident)
            elif phase is waiting or phase is swapped:
                return None
        growing = [r for r in residents if r.num_tokens > r.num_page_tokens]
        if growing and self._num_pages_to_grow(growing) > self._state.pool.num_free:
            return None
        if residents != self._running:  # compared by identity
            self._running = residents
            self._oldest_first = sorted(residents, key=_rank)
            self._keys = tuple(r.key for r in self._oldest_first)
        return self._keys

    def _num_pages_to_grow(self, residents: Sequence[Resident]) -> int:
        """Free pages that their next tokens take."""
        set_aside = self._state.pool.num_set_aside
        return sum(
            max(0, r.num_missing_pages - r.num_promised - set_aside(r.key)) for r in residents
        )

    def steps(self, keys: Sequence[RequestKey]) -> tuple[Sequence[RequestKey], list[SequenceStep]]:
        """Those of these running requests that need not wait for a page, and their next tokens."""
        entries, eos_token_ids = self._entries, self._state.identity.eos_token_ids
        is_steady = keys is self._keys  # so nobody has come or gone since these were given
        residents = self._oldest_first if is_steady else [entries[key].resident for key in keys]
        growing = [r for r in residents if r.num_tokens > r.num_page_tokens]
        held = {r.key for r in growing if not self._state.grow(r)}
        if held:
            residents = [r for r in residents if r.key not in held]
            keys = [r.key for r in residents]
        return keys, [r.step(1, eos_token_ids) for r in residents]


def _rank(resident: Resident) -> tuple[int, int]:
    return -resident.spec.priority, resident.spec.sequence
