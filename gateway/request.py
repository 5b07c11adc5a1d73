"""One live request: its attempts, what was delivered, and the record that ends it. Pure."""

from dataclasses import dataclass, field

from gateway.actions import NewRequest
from gateway.text import TextStream
from gateway.token_stream import TokenStream
from scheduling.sla import is_attained
from tandem.frames import Blob, TokenIds
from tandem.messages.common import (
    ErrorCode,
    FinishReason,
    NodeRef,
    PrefillReport,
    SlaTargets,
    Timeline,
    Usage,
)
from tandem.messages.placement import Place, Placed, PlaceRefused
from tandem.messages.serving import Ending, RequestSpec
from tandem.states import RequestState, transition

TENANT = "default"  # there are no keys, so there is one tenant


@dataclass(frozen=True, slots=True)
class End:
    """How a request ends; `code` and `message` where it was not by itself."""

    reason: FinishReason
    stop_string: str | None = None
    code: ErrorCode | None = None
    message: str | None = None
    retry_after_s: float | None = None

    @property
    def is_cut(self) -> bool:
        """Whether the nodes do not know of the end by themselves."""
        return self.stop_string is not None or self.reason in ("cancelled", "failed")


@dataclass(slots=True)
class Attempt:
    """A placed attempt; `sent` is when its commands went out, on the gateway's clock."""

    number: int
    prefill: NodeRef | None
    decode: NodeRef
    sequence: int
    sent: float
    report: PrefillReport | None = None
    ending: Ending | None = None
    ended_by: str | None = None  # the node that sent the ending

    @property
    def nodes(self) -> tuple[NodeRef, ...]:
        """The nodes that have a command of this attempt."""
        return (self.decode,) if self.prefill is None else (self.prefill, self.decode)

    def is_decoder(self, node: NodeRef) -> bool:
        """Whether the node decodes it (and, without a prefill node, prefills it too)."""
        return node.node_id == self.decode.node_id

    def has_node(self, node: NodeRef) -> bool:
        """Whether this incarnation of the node serves the attempt."""
        return any(
            (n.node_id, n.incarnation) == (node.node_id, node.incarnation) for n in self.nodes
        )


@dataclass(slots=True)
class LiveRequest:
    """A request from its admission to its terminal state."""

    new: NewRequest
    stream: TokenStream
    text: TextStream
    end_ids: frozenset[int]
    state: RequestState = RequestState.RECEIVED
    attempt_number: int = 1
    attempt: Attempt | None = None
    targets: SlaTargets | None = None
    asked_at: float = 0.0
    refused: PlaceRefused | None = None  # the last answer, where the question is repeated
    placed_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    num_cached_tokens: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def request_id(self) -> bytes:
        """The gateway's id of the request."""
        return self.new.request_id

    @property
    def max_tokens(self) -> int:
        """The limit on output tokens, resolved at admission."""
        assert self.new.params.max_tokens is not None, "admission resolves max_tokens"
        return self.new.params.max_tokens

    @property
    def deadline(self) -> float | None:
        """When the request fails, on the gateway's clock."""
        return None if self.new.deadline_s is None else self.new.received + self.new.deadline_s

    def enter(self, state: RequestState) -> None:
        """Go to another state; staying is no transition."""
        if state is not self.state:
            self.state = transition(self.state, state)

    def is_complete(self) -> bool:
        """Whether the delivered tokens already are the whole answer."""
        ids = self.stream.ids
        if len(ids) >= self.max_tokens:
            return True
        return bool(ids) and ids[-1] in self.end_ids and len(ids) >= self.new.params.min_tokens

    def busy_nodes(self, *, is_cut: bool) -> tuple[NodeRef, ...]:
        """Nodes that must be told that the attempt is over; cut short, all of its nodes."""
        attempt = self.attempt
        if attempt is None:
            return ()
        if is_cut or attempt.ended_by is None:
            return attempt.nodes
        # Where token 0 ended the request, the decode node still waits for pages.
        return () if attempt.ended_by == attempt.decode.node_id else (attempt.decode,)

    def place(self, gateway_id: str, incarnation: int) -> Place:
        """The question for nodes."""
        return Place(
            gateway_id=gateway_id,
            incarnation=incarnation,
            request_id=self.request_id,
            attempt=self.attempt_number,
            num_prompt_tokens=len(self.new.prompt_ids),
            num_output_tokens=self.stream.next_index,
            max_output_tokens=self.max_tokens,
            sla_class=self.new.sla_class,
            ttft_ms=self.new.ttft_ms,
            tpot_ms=self.new.tpot_ms,
            tenant=TENANT,
            priority=self.new.priority,
            prefix_hashes=Blob(),
        )

    def start_attempt(self, placed: Placed, now: float) -> Attempt:
        """Take a placement."""
        self.targets = placed.targets
        self.placed_at = now if self.placed_at is None else self.placed_at
        self.attempt = Attempt(
            number=placed.attempt,
            prefill=placed.prefill,
            decode=placed.decode,
            sequence=placed.sequence,
            sent=now,
        )
        self.enter(RequestState.PREFILLING)
        return self.attempt

    def spec(self, now: float) -> RequestSpec:
        """What the nodes of the current attempt are told."""
        assert self.attempt is not None
        assert self.targets is not None
        return RequestSpec(
            request_id=self.request_id,
            attempt=self.attempt.number,
            prompt_ids=self.new.prompt_ids,
            output_ids=TokenIds(self.stream.ids),
            params=self.new.params,
            seed=self.new.seed,
            choice=0,
            tenant=TENANT,
            priority=self.new.priority,
            targets=self.targets,
            deadline_s=None if self.deadline is None else max(0.0, self.deadline - now),
            sequence=self.attempt.sequence,
        )

    def note_prefill(self, report: PrefillReport) -> None:
        """What prefill did, told with token 0 and again with the end."""
        assert self.attempt is not None
        self.attempt.report = report
        self.num_cached_tokens = report.num_cached_tokens

    def note_tokens(self, now: float) -> None:
        """Tokens were delivered just now."""
        if self.first_token_at is None:
            self.first_token_at = now
        self.last_token_at = now

    @property
    def ttft_s(self) -> float | None:
        """From receipt to the first token; None before it."""
        return None if self.first_token_at is None else self.first_token_at - self.new.received

    @property
    def tpot_s(self) -> float | None:
        """Mean time between tokens; None before the second one."""
        num_gaps = self.stream.next_index - 1
        if num_gaps < 1 or self.first_token_at is None or self.last_token_at is None:
            return None
        return (self.last_token_at - self.first_token_at) / num_gaps

    def has_attained(self, now: float) -> bool:
        """Whether both targets were kept so far; false where the request was never placed."""
        ttft_s = now - self.new.received if self.ttft_s is None else self.ttft_s
        return self.targets is not None and is_attained(self.targets, ttft_s, self.tpot_s)

    def usage(self) -> Usage:
        """Delivered tokens only."""
        return Usage(
            num_prompt_tokens=len(self.new.prompt_ids),
            num_output_tokens=self.stream.next_index,
            num_cached_tokens=self.num_cached_tokens,
        )

    def timeline(self, now: float) -> Timeline:
        """The stages of the last attempt between placement and end, on the gateway's clock.

        Nodes report durations since their command arrived, which is taken to be when it was sent.
        """
        received, attempt = self.new.received, self.attempt
        ending = None if attempt is None else attempt.ending
        decode = None if ending is None else ending.decode
        prefill = None if attempt is None else attempt.report

        def stage(after_s: float | None) -> float | None:
            if attempt is None or after_s is None:
                return None
            return min(attempt.sent + after_s, now) - received

        return Timeline(
            received_unix_s=self.new.received_unix_s,
            placed_s=None if self.placed_at is None else self.placed_at - received,
            prefill_start_s=stage(None if prefill is None else prefill.started_after_s),
            first_token_s=self.ttft_s,
            transfer_end_s=stage(None if decode is None else decode.transfer_end_after_s),
            decode_start_s=stage(None if decode is None else decode.started_after_s),
            finished_s=now - received,
            prefill_node=None if prefill is None else prefill.node_id,
            decode_node=None if attempt is None else attempt.decode.node_id,
            transfer_bytes=0 if decode is None else decode.transfer_bytes,
            num_attempts=self.attempt_number,
        )
