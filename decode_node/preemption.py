"""Pages taken from a resident, and given back: dropped and computed again, or swapped.

Recompute drops the KV; full pages stay as prefix cache for as long as nobody needs their room, and
the known tokens go to the node's own prefill guest, whose next token carries the stream on. Swap
copies the pages to host memory and back. vLLM (SOSP 2023, section 4.5) compares the two: which is
cheaper depends on the model and the length, so `auto` asks the node's costs. Pure, but for the
copies that an injected store makes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from decode_node.entry import Entry, Phase
from decode_node.replies import move_wanted
from node.actions import NodeAction, Reply
from node.page_store import PageStore
from node.resident import Resident
from node.state import NodeState
from scheduling.costs import prefill_s
from scheduling.views import PreemptMode, RequestKey

# A preempted request makes so many tokens before it is preempted again: pages that come and go
# with every step are work without tokens.
MIN_RESIDENCE_TOKENS = 16
MOVE_AGAIN_S = 3.0
StartLocal = Callable[[Resident, float], None]


@dataclass(frozen=True, slots=True)
class Swap:
    """Host memory for pages, and how fast they are copied. `num_pages` 0: there is none."""

    store: PageStore
    num_pages: int
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class PreemptionOptions:
    """`default` is what `auto` means: itself, the cheaper one, or always the same."""

    default: Literal["auto", "recompute", "swap"] = "auto"
    chunk_tokens: int = 512


@dataclass(frozen=True, slots=True)
class _Saved:
    num_pages: int
    num_computed: int


class Preemption:
    """See the module. `num_preempted` and `num_swapped` count since the start."""

    def __init__(
        self,
        state: NodeState,
        swap: Swap | None,
        options: PreemptionOptions,
        *,
        start_local: StartLocal,
    ) -> None:
        self._state = state
        self._swap = swap
        self._options = options
        self._start_local = start_local
        self._saved: dict[RequestKey, _Saved] = {}
        self._wishes: list[NodeAction] = []
        self.num_preempted = 0
        self.num_swapped = 0

    def preempt(self, entry: Entry, mode: PreemptMode, now: float) -> None:
        """A policy wants its pages for others, or it elsewhere."""
        if mode == "migrate":
            self._wish_move(entry, now)
        else:
            self._take(entry, mode, now)

    def unblock(self, entries: Iterable[Entry], now: float, *, is_short: bool) -> bool:
        """Nothing could run: bring the oldest swapped request back, or preempt the youngest where
        pages are short. False where neither helps."""
        known = list(entries)
        swapped = [e for e in known if e.phase is Phase.SWAPPED]
        first = min(swapped, key=_age, default=None)
        if first is not None and self.restore(first):
            return True
        chosen = self._victim([e for e in known if e.has_pages]) if is_short else None
        if chosen is not None:
            self._take(chosen, "auto", now)
        return chosen is not None

    def _victim(self, residents: list[Entry]) -> Entry | None:
        """The youngest, rather none that just came back.

        None where the oldest is not among them: its pages are on their way, and need no victim.
        """
        is_oldest = self._state.pool.growth.is_oldest
        others = [e for e in residents if not is_oldest(e.resident.key)]
        if len(others) == len(residents):
            return None
        return max(others, key=lambda e: (not is_protected(e.resident), _age(e)), default=None)

    def _wish_move(self, entry: Entry, now: float) -> None:
        """Ask its gateway; it runs here until it is elsewhere, and a lost wish is asked again."""
        wished_at = entry.move_wished_at
        if wished_at is None or now - wished_at >= MOVE_AGAIN_S:
            entry.move_wished_at = now
            self._wishes.append(Reply(entry.resident.peer, move_wanted(entry.resident.key)))

    def take_wishes(self) -> list[NodeAction]:
        """What gateways are to be asked."""
        wishes, self._wishes = self._wishes, []
        return wishes

    def _take(self, entry: Entry, mode: PreemptMode, now: float) -> None:
        state, resident = self._state, entry.resident
        is_swap = self._choose(resident, mode) == "swap"
        state.index_pages(resident)
        if is_swap:
            assert self._swap is not None
            self._swap.store.save(resident.key, resident.pages)
            self._saved[resident.key] = _Saved(resident.num_pages, resident.num_computed)
            self.num_swapped += 1
        else:
            resident.num_dropped = resident.num_computed
        state.give_back(resident)
        num_pages = resident.num_missing_pages
        state.pool.growth.displace(resident.key, resident.spec.sequence, num_pages)
        resident.num_preemptions += 1
        resident.preempted_at = resident.num_tokens
        self.num_preempted += 1
        if is_swap:
            entry.phase = Phase.SWAPPED
        else:
            entry.phase = Phase.RECOMPUTING
            resident.is_begun = False
            self._start_local(resident, now)

    def _choose(self, resident: Resident, mode: PreemptMode) -> Literal["recompute", "swap"]:
        wanted = self._options.default if mode == "auto" else mode
        if wanted == "recompute" or not self._has_room(resident.num_pages):
            return "recompute"
        if wanted == "swap":
            return "swap"
        return "swap" if self._swap_s(resident) < self._recompute_s(resident) else "recompute"

    def _has_room(self, num_pages: int) -> bool:
        num_used = sum(saved.num_pages for saved in self._saved.values())
        return self._swap is not None and num_used + num_pages <= self._swap.num_pages

    def _swap_s(self, resident: Resident) -> float:
        """Seconds to copy its pages out and in."""
        assert self._swap is not None
        page_bytes = self._state.identity.layout.page_bytes
        return 2 * resident.num_pages * page_bytes / self._swap.bytes_per_s

    def _recompute_s(self, resident: Resident) -> float:
        """Seconds to compute again what others do not keep cached: idle cache goes first."""
        ledger = self._state.ledger
        num_shared = 0
        for page in resident.pages:
            if not ledger.is_shared(page):
                break
            num_shared += 1
        num_kept = min(num_shared * self._state.identity.layout.page_size, resident.num_computed)
        num_new = resident.num_computed - num_kept
        chunk_tokens = self._options.chunk_tokens
        return prefill_s(self._state.costs.current, num_new, num_kept, chunk_tokens)

    def restore(self, entry: Entry) -> bool:
        """Bring swapped pages back, those that are not cached; False where there is no room yet."""
        assert self._swap is not None
        resident = entry.resident
        saved = self._saved[resident.key]
        hashes = self._state.hashes(resident, saved.num_computed)
        if not self._state.claim(resident, hashes, grows=True):
            return False
        first = resident.num_matched // self._state.identity.layout.page_size
        self._swap.store.load(resident.key, first, resident.pages[first : saved.num_pages])
        resident.num_computed = saved.num_computed
        self._drop(resident.key)
        entry.phase = Phase.WAITING
        return True

    def forget(self, entry: Entry) -> None:
        """A swapped request is over."""
        self._drop(entry.resident.key)
        self._state.pool.growth.leave(entry.resident.key)

    def _drop(self, key: RequestKey) -> None:
        assert self._swap is not None
        del self._saved[key]
        self._swap.store.drop(key)


def is_protected(resident: Resident) -> bool:
    """Whether it came back a moment ago."""
    num_made = resident.num_tokens - resident.preempted_at
    return resident.num_preemptions > 0 and num_made < MIN_RESIDENCE_TOKENS


def _age(entry: Entry) -> tuple[int, RequestKey]:
    """The oldest first."""
    return entry.resident.spec.sequence, entry.resident.key
