"""The order of a node's prompts, asked from the policy as seldom as it may be."""

from collections.abc import Iterable

from prefill_node.job import Job, Phase
from scheduling.views import PrefillPolicy, Services

# A policy over 1,000 prompts takes about a millisecond, and a step may be as short: keys that only
# time changes (HRRN, deadlines) move little in this many seconds.
ORDER_S = 0.02
WITH_PAGES = (Phase.RESERVING, Phase.READING, Phase.RUNNABLE)


class PromptOrder:
    """Keeps the policy's order until a prompt came or began, or `ORDER_S` passed.

    The policy sees all prompts that wait or have pages together, so that it can keep one back for
    another. What it leaves out does not start; a prompt with room at its decode node is never left
    out, as others wait for that room.
    """

    def __init__(self, policy: PrefillPolicy, services: Services) -> None:
        self._policy = policy
        self.services = services
        self._order: list[Job] = []
        self._asked_at: float | None = None
        self._has_left_out = False

    def changed(self) -> None:
        """A prompt came, began, or can go on."""
        self._asked_at = None

    def ended(self) -> None:
        """A prompt is computed, or over: who was kept back for it may run."""
        if self._has_left_out:
            self._asked_at = None

    def of(self, phase: Phase, jobs: Iterable[Job], now: float) -> list[Job]:
        """The jobs of this phase, the next first; `jobs` are all that there are."""
        if self._asked_at is None or now - self._asked_at >= ORDER_S:
            self._ask(jobs, now)
        return [job for job in self._order if job.phase is phase]

    def _ask(self, jobs: Iterable[Job], now: float) -> None:
        known = {
            job.resident.key: job
            for job in jobs
            if job.is_uncomputed and job.phase is not Phase.PARKED
        }
        views = [job.view() for job in known.values()]
        self._order = [known.pop(key) for key in self._policy.order(views, now, self.services)]
        self._order += [job for job in known.values() if job.phase is Phase.GRANTED]
        self._has_left_out = any(job.phase is Phase.QUEUED for job in known.values())
        self._asked_at = now


def to_bring_back(jobs: Iterable[Job]) -> list[Job]:
    """Preempted requests without pages, the oldest first: before all others, and for no policy.

    Pages are kept for the oldest of them, which nobody else could take.
    """
    waiting = [j for j in jobs if j.resident.num_preemptions and j.phase is Phase.QUEUED]
    return sorted(waiting, key=lambda job: (job.resident.spec.sequence, job.resident.key))


def num_tokens_with_pages(jobs: Iterable[Job]) -> int:
    """Tokens left of prompts that have their pages."""
    queued = Phase.QUEUED  # of thousands nearly all are: looked up once, told apart by one `is`
    begun = [j for j in jobs if j.phase is not queued]
    return sum(j.num_left for j in begun if j.phase in WITH_PAGES)
