"""One live request: its attempts, what was delivered, and the record that ends it. Pure."""

from dataclasses import dataclass, field

import numpy as np

from gateway.actions import NewRequest
from gateway.attempt import Attempt, Failure, Move
from gateway.prefixes import PrefixChain
from gateway.text import TextStream
from gateway.token_stream import TokenStream
from scheduling.sla import is_attained
from tandem.frames import Blob, TokenIds
from tandem.messages.common import (
    ErrorCode,
    FinishReason,
    PrefillReport,
    SlaTargets,
    Timeline,
    Usage,
)
from tandem.messages.placement import Place, Placed, PlaceRefused
from tandem.messages.serving import RequestSpec
from tandem.states import RequestState, transition

MAX_AVOIDED = 16  # as the wire allows


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
class LiveRequest:
    """A request from its admission to its terminal state."""

    new: NewRequest
    stream: TokenStream
    text: TextStream
    end_ids: frozenset[int]
    state: RequestState = RequestState.RECEIVED
    attempt_number: int = 0  # of the attempt, or of the question that it waits for
    last_number: int = 0  # the highest ever asked for: a refused move leaves a gap
    num_started: int = 0
    attempt: Attempt | None = None
    move: Move | None = None
    move_again_at: float = 0.0
    num_deaths: int = 0  # attempts that a node's death ended while they ran there
    num_failures: int = 0  # attempts that ended otherwise, and were none of our moves
    failures: list[Failure] = field(default_factory=list)
    targets: SlaTargets | None = None
    asked_at: float | None = None  # None while its turn to be placed again has not come
    ask_at: float | None = None  # when that is a matter of time
    refused: PlaceRefused | None = None  # the last answer, where the question is repeated
    placed_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    max_gap_s: float | None = None  # between two deliveries
    num_cached_tokens: int | None = None
    chain: PrefixChain | None = None

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

    @property
    def avoided(self) -> tuple[str, ...]:
        """The nodes that failed earlier attempts, each once, the last ones where they are many."""
        names = dict.fromkeys(name for failure in self.failures for name in failure.nodes)
        return tuple(names)[-MAX_AVOIDED:]

    def prefixes(self) -> Blob:
        """Routing prefixes of the full pages of what is known of the request's tokens."""
        if self.chain is None:
            return Blob()
        output_ids = np.array(self.stream.ids, dtype=np.int32)
        return self.chain.extend(np.concatenate([self.new.prompt_ids.array, output_ids]))

    def next_number(self) -> int:
        """The number of another attempt."""
        self.last_number += 1
        return self.last_number

    def place(
        self,
        gateway_id: str,
        incarnation: int,
        prefixes: Blob,
        now: float,
        move: Move | None = None,
    ) -> Place:
        """The question for nodes: for the next attempt, or for a move."""
        return Place(
            gateway_id=gateway_id,
            incarnation=incarnation,
            request_id=self.request_id,
            attempt=self.attempt_number if move is None else move.number,
            num_prompt_tokens=len(self.new.prompt_ids),
            num_output_tokens=self.stream.next_index,
            max_output_tokens=self.max_tokens,
            sla_class=self.new.sla_class,
            ttft_ms=self.new.ttft_ms,
            tpot_ms=self.new.tpot_ms,
            tenant=self.new.tenant,
            tenant_weight=self.new.tenant_weight,
            priority=self.new.priority,
            prefix_hashes=prefixes,
            avoid=self.avoided,
            num_deaths=self.num_deaths,
            move_from=None if move is None else move.leaving.node_id,
            prediction=self.new.prediction,
            waited_s=self.waited_s(now),
        )

    def waited_s(self, now: float) -> float:
        """Since its client's request came in."""
        return max(0.0, now - self.new.received)

    def start_attempt(self, placed: Placed, now: float) -> Attempt:
        """Take a placement; of a move, in place of the attempt that goes on."""
        is_move = self.move is not None and self.move.number == placed.attempt
        if is_move:
            self.enter(RequestState.PLACING)
            self.stream.drop_ahead()
        self.move = None
        self.attempt_number = placed.attempt
        self.num_started += 1
        self.targets = placed.targets
        self.placed_at = now if self.placed_at is None else self.placed_at
        self.attempt = Attempt.of(placed, now, is_move=is_move)
        self.enter(RequestState.PREFILLING)
        return self.attempt

    def spec(self, attempt: Attempt, now: float) -> RequestSpec:
        """What the nodes of an attempt are told."""
        assert self.targets is not None, "an attempt was placed"
        return RequestSpec(
            request_id=self.request_id,
            attempt=attempt.number,
            prompt_ids=self.new.prompt_ids,
            output_ids=TokenIds(self.stream.ids),
            params=self.new.params,
            seed=self.new.seed,
            choice=self.new.choice,
            tenant=self.new.tenant,
            priority=self.new.priority,
            targets=self.targets,
            deadline_s=None if self.deadline is None else max(0.0, self.deadline - now),
            sequence=attempt.sequence,
            waited_s=self.waited_s(now),
            tenant_weight=self.new.tenant_weight,
            prediction=self.new.prediction,
        )

    def note_prefill(self, attempt: Attempt, report: PrefillReport) -> None:
        """What prefill did, told with token 0 and again with the end.

        The first attempt's word counts: a later one finds in caches what the first one computed.
        """
        attempt.report = report
        if self.num_cached_tokens is None:
            self.num_cached_tokens = min(report.num_cached_tokens, len(self.new.prompt_ids))

    def note_tokens(self, now: float) -> None:
        """Tokens were delivered just now."""
        if self.first_token_at is None:
            self.first_token_at = now
        if self.last_token_at is not None:
            self.max_gap_s = max(self.max_gap_s or 0.0, now - self.last_token_at)
        self.last_token_at = now

    @property
    def num_new_tokens(self) -> int:
        """Delivered tokens, without those that the client had from another gateway."""
        return max(0, self.stream.next_index - len(self.new.delivered))

    @property
    def ttft_s(self) -> float | None:
        """From receipt to the first token; None before it."""
        return None if self.first_token_at is None else self.first_token_at - self.new.received

    @property
    def tpot_s(self) -> float | None:
        """Mean time between tokens; None before the second one."""
        num_gaps = self.num_new_tokens - 1
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
            num_cached_tokens=self.num_cached_tokens or 0,
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
            num_attempts=max(1, self.num_started),
        )
