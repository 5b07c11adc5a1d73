"""Where the requests of one node are, by phase, in the order in which they came there."""

from dataclasses import dataclass, field

from scheduling.views import RequestKey
from simulator.performance.requests import Phase, Resident

Residents = dict[RequestKey, Resident]


@dataclass(slots=True)
class Queues:
    """A resident is in the queue of its phase; phases without one are on their way elsewhere."""

    queued: Residents = field(default_factory=dict)
    granted: Residents = field(default_factory=dict)
    reserving: Residents = field(default_factory=dict)
    runnable: Residents = field(default_factory=dict)
    waiting: Residents = field(default_factory=dict)
    running: Residents = field(default_factory=dict)
    swapped: Residents = field(default_factory=dict)

    def of(self, phase: Phase) -> Residents:
        """The queue of a phase; an empty one where it has none."""
        queue: Residents = getattr(self, phase.name.lower(), {})
        return queue

    def move(self, resident: Resident, phase: Phase) -> None:
        """To the end of another queue."""
        self.of(resident.phase).pop(resident.key, None)
        resident.phase = phase
        self.of(phase)[resident.key] = resident

    @property
    def prompts(self) -> tuple[Residents, ...]:
        """Queues that a prefill policy orders."""
        return self.queued, self.granted, self.reserving, self.runnable

    @property
    def has_work(self) -> bool:
        """Whether a batch policy has anything to plan."""
        return bool(self.runnable or self.waiting or self.running or self.swapped)

    @property
    def has_prompts(self) -> bool:
        """Whether prompts are here that could start or run."""
        return bool(self.runnable or self.queued or self.granted)
