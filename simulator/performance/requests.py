"""What the simulator knows of a request, and of its stay on a node."""

from dataclasses import dataclass, field
from enum import Enum, auto

from scheduling.views import RequestKey, SequenceView
from tandem.messages.common import LengthPrediction

PREFIX_BLOCKS = 2


@dataclass(slots=True)
class SimRequest:
    """A request and what became of it. Times are in seconds of the simulation.

    max_output: what the client asks for at most; num_output: what comes, unknown to policies.
    """

    index: int
    arrived_at: float
    num_prompt: int
    num_output: int
    max_output: int
    sla_class: str
    ttft_s: float
    tpot_s: float
    blocks: tuple[int, ...] = ()
    prediction: LengthPrediction | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    finished_at: float | None = None
    refusal: str | None = None
    num_preemptions: int = 0
    num_cached: int = 0
    num_ends: int = 0
    key: RequestKey = field(init=False)

    def __post_init__(self) -> None:
        """Its key is what a gateway would have drawn."""
        self.key = (self.index.to_bytes(16, "big"), 1)

    @property
    def num_final_tokens(self) -> int:
        """Tokens that it may come to have."""
        return self.num_prompt + self.max_output

    @property
    def num_mean_tokens(self) -> int:
        """Tokens half way through its longest answer."""
        return self.num_prompt + self.max_output // 2

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token."""
        return None if self.first_token_at is None else self.first_token_at - self.arrived_at

    @property
    def tpot(self) -> float | None:
        """Mean seconds per token after the first; None without a second one, or without an end."""
        if self.finished_at is None or self.first_token_at is None or self.num_output < 2:
            return None
        return (self.finished_at - self.first_token_at) / (self.num_output - 1)

    @property
    def e2e(self) -> float | None:
        """Seconds to the last token."""
        return None if self.finished_at is None else self.finished_at - self.arrived_at

    @property
    def is_attained(self) -> bool:
        """Whether it ended, and kept both of its targets."""
        if self.finished_at is None or self.ttft is None:
            return False
        return self.ttft <= self.ttft_s and (self.tpot is None or self.tpot <= self.tpot_s)


class Phase(Enum):
    """Where a request is on a node."""

    QUEUED = auto()  # a prompt that holds nothing
    RESERVING = auto()  # has its pages, and waits for the decode node's, or for what it reads there
    PARKED = auto()  # the decode node has no room
    GRANTED = auto()  # the decode node has room; own pages not yet retaken
    RUNNABLE = auto()
    SENDING = auto()  # computed; its pages are on their way
    EXPECTED = auto()  # on the decode node, before its KV
    WAITING = auto()
    RUNNING = auto()
    SWAPPED = auto()
    GONE = auto()


@dataclass(slots=True)
class Resident:
    """A request on one node. `decode` None: this node decodes it itself.

    num_own: pages of its own. blocks: those that it shares through the cache. chunks: when each of
    its chunks was computed, and how many tokens were then.
    """

    request: SimRequest
    age: int
    arrived_at: float
    phase: Phase
    num_tokens: int
    num_computed: int = 0
    decode: int | None = None
    prefill: int | None = None
    num_own: int = 0
    num_promised: int = 0
    blocks: list[int] = field(default_factory=list)
    num_todo: int = 0  # prompt tokens that its node still has to compute, as far as is known
    num_placed_pages: int = 0
    num_preemptions: int = 0
    preempted_at: int = 0  # tokens known then
    num_dropped: int = 0  # tokens to compute again
    started_at: float | None = None
    chunks: list[tuple[float, int]] = field(default_factory=list)
    _view: SequenceView | None = None

    @property
    def key(self) -> RequestKey:
        """Of its request."""
        return self.request.key

    @property
    def num_left(self) -> int:
        """Known tokens whose KV is still to be computed."""
        return self.num_tokens - self.num_computed

    @property
    def _prefix_id(self) -> bytes | None:
        """Of its first blocks: traces begin with one that all requests share."""
        blocks = self.request.blocks[:PREFIX_BLOCKS]
        return repr(blocks).encode() if len(blocks) == PREFIX_BLOCKS else None

    @property
    def num_left_to_draw(self) -> int:
        """Output tokens that are still to come."""
        return self.request.num_prompt + self.request.num_output - self.num_tokens

    def changed(self) -> None:
        """What a view says has changed."""
        self._view = None

    def view(self, block_pages: int) -> SequenceView:
        """As policies see it; the same object until it changes."""
        if self._view is None:
            request = self.request
            self._view = SequenceView(
                key=request.key,
                age=self.age,
                arrived_at=self.arrived_at,
                priority=0,
                tenant="default",
                num_prompt_tokens=request.num_prompt,
                num_tokens=self.num_tokens,
                num_computed=self.num_computed,
                max_total_tokens=request.num_final_tokens,
                num_pages=self.num_own + len(self.blocks) * block_pages,
                num_promised=self.num_promised,
                waited_s=self.arrived_at - request.arrived_at,
                ttft_s=request.ttft_s,
                tpot_s=request.tpot_s,
                last_token_at=request.last_token_at,
                num_preemptions=request.num_preemptions,
                prediction=request.prediction,
                is_begun=self.started_at is not None and self.num_left > 0,
                num_cached=request.num_cached,
                prefix_id=self._prefix_id,
            )
        return self._view
