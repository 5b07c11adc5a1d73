"""What a role must offer to the node that hosts it.

A guest owns its queue, its hand-offs and what becomes of results; the node owns the loop, the
device and the pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from node.actions import NodeAction
from node.resident import Resident
from node.runner import Sampled, SequenceStep
from scheduling.views import PreemptMode, RequestKey, SequenceView, Services
from tandem.messages.common import NodeRef
from tandem.messages.evaluation import EvaluationCommand


class Guest(Protocol):
    """A role: prefill or decode. Every method is called by the step thread, between steps."""

    def command(self, peer: bytes, message: msgspec.Struct, now: float) -> list[NodeAction]:
        """A message of this role from a peer that dialled the node."""

    def answer(self, node_id: str, message: msgspec.Struct, now: float) -> list[NodeAction]:
        """A message from a node that this node dialled."""

    def cancel(self, key: RequestKey, now: float) -> list[NodeAction]:
        """End this attempt and earlier ones, known or not yet known."""

    def bulk_event(self, event: object, now: float) -> list[NodeAction]:
        """The bulk thread reports."""

    def node_lost(self, node: NodeRef, reason: str, now: float) -> list[NodeAction]:
        """A node that this guest exchanges pages with is gone, or refused the exchange."""

    def peer_lost(self, peer: bytes, now: float) -> list[NodeAction]:
        """A gateway has been silent for too long: end what belongs to it."""

    def tick(self, now: float) -> list[NodeAction]:
        """Time has passed, or pages were freed: start what can start, resend what is due."""

    def has(self, key: RequestKey) -> bool:
        """Whether this attempt is waiting, at work or on its way here now."""

    def knows(self, key: RequestKey) -> bool:
        """Whether this attempt is, or was, this role's."""

    @property
    def num_requests(self) -> int:
        """Requests, hand-offs and leftovers that this guest still minds."""


@dataclass(frozen=True, slots=True)
class PrefillWork:
    """Prompts not yet computed, and their tokens without KV; what all prompts hold of the pool."""

    num_prompts: int
    num_tokens: int
    num_held_tokens: int
    num_held_pages: int


class PrefillRole(Guest, Protocol):
    """The prefill guest as the node and the decode guest see it."""

    def use(self, services: Services) -> None:
        """What its policy may ask from now on."""

    def views(self, now: float) -> tuple[SequenceView, ...]:
        """Prompts that may run now, first first."""

    def step(self, key: RequestKey, num_tokens: int, now: float) -> SequenceStep:
        """The next chunk of a prompt."""

    def computed(
        self, key: RequestKey, num_tokens: int, sampled: Sampled | None, now: float
    ) -> list[NodeAction]:
        """The chunk was computed."""

    def start_local(self, resident: Resident, now: float) -> None:
        """Compute a prompt for the decode guest of this node, without a transfer."""

    def evaluate(
        self, peer: bytes, message: EvaluationCommand, now: float, *, is_open: bool
    ) -> list[NodeAction]:
        """A gateway's command; a new evaluation is taken where the role `is_open`."""

    def work(self) -> PrefillWork:
        """What it has to do, and holds."""

    @property
    def num_sending(self) -> int:
        """Computed prompts that are not yet committed to their decode nodes."""


class DecodeRole(Guest, Protocol):
    """The decode guest as the node sees it."""

    def has_kv(self, peer: bytes, key: RequestKey) -> bool:
        """Whether the attempt goes on, or ended, here: its prefill node is not needed any more."""

    def has_had(self, request_id: bytes) -> bool:
        """Whether some attempt of the request is or was here: its pages are, or may be, cached."""

    def waiting(self) -> tuple[SequenceView, ...]:
        """Requests with KV that no policy has admitted yet."""

    def running(self) -> tuple[SequenceView, ...]:
        """Admitted requests."""

    def swapped(self) -> tuple[SequenceView, ...]:
        """Preempted requests with their KV in host memory."""

    def admit(self, key: RequestKey, now: float) -> bool:
        """The policy admits it; False where a swapped one has no room to come back."""

    def steady_rows(self) -> tuple[RequestKey, ...] | None:
        """All that run, oldest first, where nobody waits or is swapped and there are pages for all
        their next tokens; else None."""

    def steps(
        self, keys: Sequence[RequestKey], now: float
    ) -> tuple[Sequence[RequestKey], list[SequenceStep]]:
        """Those of these running requests that need not wait for a page, and their next tokens."""

    def computed(
        self, keys: Sequence[RequestKey], sampled: Sequence[Sampled | None], now: float
    ) -> None:
        """The step drew the next token of each of these."""

    def protected(self) -> frozenset[RequestKey]:
        """Requests that came back from a preemption a moment ago: not to be preempted again."""

    def preempt(self, key: RequestKey, mode: PreemptMode, now: float) -> None:
        """The policy wants its pages for others, or it elsewhere."""

    def unblock(self, now: float, *, is_short: bool) -> bool:
        """Nothing could run: make that something can; False where there is nothing to be done."""

    @property
    def num_verifying(self) -> int:
        """Hand-offs that are committed and whose checksums are being compared."""

    @property
    def num_preempted(self) -> int:
        """Preemptions since the start."""
