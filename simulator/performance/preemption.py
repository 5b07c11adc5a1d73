"""Pages taken from running requests of a node, and given back; as `decode_node.preemption`.

Host memory for swapped pages has no limit here; copies take their time within the next step.
"""

from dataclasses import dataclass

from decode_node.preemption import MIN_RESIDENCE_TOKENS
from scheduling.costs import prefill_s
from scheduling.views import PreemptMode, RequestKey, Services
from simulator.performance.profiles import Profile
from simulator.performance.queues import Queues
from simulator.performance.requests import Phase, Resident
from simulator.performance.residency import Residency


@dataclass(slots=True)
class Preemption:
    """`swap_s`: seconds of copying that the next step begins with. A wish to move is not obeyed."""

    profile: Profile
    services: Services
    queues: Queues
    residency: Residency
    chunk_tokens: int
    swap_s: float = 0.0

    def take(self, resident: Resident, mode: PreemptMode) -> None:
        """A policy wants its pages for others."""
        if mode == "migrate":
            return
        is_swap = self._is_swap(resident, mode)
        if is_swap:
            self.swap_s += self._copy_s(resident)
        else:
            resident.num_dropped = resident.num_computed
            resident.num_computed = 0
            resident.decode = None
            resident.started_at = None
        resident.num_preemptions += 1
        resident.preempted_at = resident.num_tokens
        resident.request.num_preemptions += 1
        self.queues.move(resident, Phase.SWAPPED if is_swap else Phase.QUEUED)
        self.residency.give_back(resident)
        num_pages = self.residency.num_pages(resident.num_tokens)
        self.residency.pages.growth.displace(resident.key, resident.age, num_pages)

    def restore(self, resident: Resident) -> bool:
        """Bring swapped pages back; False where there is no room yet."""
        if not self.residency.claim(resident, with_growth=True):
            return False
        self.swap_s += self._copy_s(resident)
        self.queues.move(resident, Phase.WAITING)
        return True

    def unblock(self, *, is_short: bool) -> bool:
        """Nothing could run: the oldest swapped one comes back, or the youngest goes."""
        first = min(self.queues.swapped.values(), key=_age, default=None)
        if first is not None and self.restore(first):
            return True
        residents = [*self.queues.waiting.values(), *self.queues.running.values()]
        is_oldest = self.residency.pages.growth.is_oldest
        others = [r for r in residents if not is_oldest(r.key)]
        if not is_short or not others or len(others) == len(residents):
            return False
        self.take(max(others, key=lambda r: (not is_protected(r), _age(r))), "auto")
        return True

    def protected(self) -> frozenset[RequestKey]:
        """Requests that came back from a preemption a moment ago: not to be preempted again."""
        return frozenset(key for key, r in self.queues.running.items() if is_protected(r))

    def _is_swap(self, resident: Resident, mode: PreemptMode) -> bool:
        if self.profile.swap_bytes_per_s <= 0 or mode == "recompute":
            return False
        again_s = prefill_s(self.services.costs, resident.num_computed, 0, self.chunk_tokens)
        return mode == "swap" or 2 * self._copy_s(resident) < again_s

    def _copy_s(self, resident: Resident) -> float:
        num_pages = self.residency.num_pages(resident.num_computed)
        return self.profile.swap_s + num_pages * self.profile.page_bytes / (
            self.profile.swap_bytes_per_s
        )


def is_protected(resident: Resident) -> bool:
    """As `decode_node.preemption.is_protected`."""
    num_made = resident.num_tokens - resident.preempted_at
    return resident.num_preemptions > 0 and num_made < MIN_RESIDENCE_TOKENS


def _age(resident: Resident) -> tuple[int, RequestKey]:
    return resident.age, resident.key
