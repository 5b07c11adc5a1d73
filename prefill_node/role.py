"""The prefill role of a node: prompts of requests and evaluations, in one order. Pure."""

from collections.abc import Iterator

import msgspec

from kv_transfer.outgoing import OutgoingTransfers
from node.actions import NodeAction
from node.guest import PrefillWork
from node.resident import Resident
from node.runner import Sampled, SequenceStep
from node.state import NodeState
from prefill_node.evaluations import EvaluationGuest
from prefill_node.guest import LocalDecode, PrefillGuest
from scheduling.views import PrefillPolicy, RequestKey, SequenceView, Services
from tandem.messages.common import NodeRef
from tandem.messages.evaluation import EvaluatePrompt, EvaluationCommand
from tandem.messages.serving import Prefill


class SharedPrefill:
    """A `node.guest.PrefillRole` of two guests; the arguments are the prefill guest's.

    The look-ahead is for each of the two, so that neither can take the other's pages.
    """

    def __init__(
        self,
        state: NodeState,
        transfers: OutgoingTransfers,
        policy: PrefillPolicy,
        *,
        lookahead_tokens: int,
        local: LocalDecode,
        services: Services,
    ) -> None:
        self.prompts = PrefillGuest(
            state,
            transfers,
            policy,
            lookahead_tokens=lookahead_tokens,
            local=local,
            services=services,
        )
        self.evaluations = EvaluationGuest(state, lookahead_tokens=lookahead_tokens)

    # --- both -------------------------------------------------------------------------------

    def peer_lost(self, peer: bytes, now: float) -> list[NodeAction]:
        """A gateway has been silent for too long."""
        self.evaluations.peer_lost(peer)
        return self.prompts.peer_lost(peer, now)

    def tick(self, now: float) -> list[NodeAction]:
        """Start what can start."""
        actions = self.prompts.tick(now)
        self.evaluations.tick(now)
        return actions

    def views(self, now: float) -> tuple[SequenceView, ...]:
        """What may run now, the next first: each guest's in its own order."""
        prompts, evaluations = self.prompts.views(now), self.evaluations.views()
        if not (prompts and evaluations):
            return prompts or evaluations
        return tuple(_merged(prompts, evaluations))

    def step(self, key: RequestKey, num_tokens: int, now: float) -> SequenceStep:
        """The next chunk."""
        guest = self.evaluations if self.evaluations.has(key) else self.prompts
        return guest.step(key, num_tokens, now)

    def computed(
        self, key: RequestKey, num_tokens: int, sampled: Sampled | None, now: float
    ) -> list[NodeAction]:
        """The step ran."""
        guest = self.evaluations if self.evaluations.has(key) else self.prompts
        return guest.computed(key, num_tokens, sampled, now)

    def work(self) -> PrefillWork:
        """What both have to do, and hold."""
        ours, theirs = self.prompts.work(), self.evaluations.work()
        return PrefillWork(
            num_prompts=ours.num_prompts + theirs.num_prompts,
            num_tokens=ours.num_tokens + theirs.num_tokens,
            num_held_tokens=ours.num_held_tokens + theirs.num_held_tokens,
            num_held_pages=ours.num_held_pages + theirs.num_held_pages,
        )

    @property
    def num_requests(self) -> int:
        """Of both."""
        return self.prompts.num_requests + self.evaluations.num_requests

    # --- evaluations ------------------------------------------------------------------------

    def evaluate(
        self, peer: bytes, message: EvaluationCommand, now: float, *, is_open: bool
    ) -> list[NodeAction]:
        """A gateway's command; new ones are taken where the role `is_open`.

        One under the key of a prompt is dropped: ids are random, so that is no accident.
        """
        if isinstance(message, EvaluatePrompt):
            spec = message.spec
            if self.prompts.has((spec.request_id, spec.attempt)):
                return []
        return self.evaluations.evaluate(peer, message, now, is_open=is_open)

    # --- prompts ----------------------------------------------------------------------------

    def command(self, peer: bytes, message: msgspec.Struct, now: float) -> list[NodeAction]:
        """Take a `Prefill`; one under the key of an evaluation is dropped."""
        assert isinstance(message, Prefill)
        if self.evaluations.has((message.spec.request_id, message.spec.attempt)):
            return []
        return self.prompts.command(peer, message, now)

    def start_local(self, resident: Resident, now: float) -> None:
        """Compute a prompt for the decode guest of this node."""
        self.prompts.start_local(resident, now)

    def cancel(self, key: RequestKey, now: float) -> list[NodeAction]:
        """End this attempt and earlier ones."""
        return self.prompts.cancel(key, now)

    def answer(self, node_id: str, message: msgspec.Struct, now: float) -> list[NodeAction]:
        """The owner of a hand-off answers."""
        return self.prompts.answer(node_id, message, now)

    def bulk_event(self, event: object, now: float) -> list[NodeAction]:
        """A copy returned."""
        return self.prompts.bulk_event(event, now)

    def node_lost(self, node: NodeRef, reason: str, now: float) -> list[NodeAction]:
        """An owner is gone."""
        return self.prompts.node_lost(node, reason, now)

    def use(self, services: Services) -> None:
        """What its policy may ask from now on."""
        self.prompts.use(services)

    def has(self, key: RequestKey) -> bool:
        """Whether this prompt waits, runs, or is on its way."""
        return self.prompts.has(key)

    def knows(self, key: RequestKey) -> bool:
        """Whether its `Prefill` came, or it is over; no decode command fits an evaluation."""
        return self.prompts.knows(key) or self.evaluations.has(key)

    @property
    def num_sending(self) -> int:
        """Computed prompts whose pages are not all at the decode node yet."""
        return self.prompts.num_sending


def _merged(
    ours: tuple[SequenceView, ...], theirs: tuple[SequenceView, ...]
) -> Iterator[SequenceView]:
    """Two queues whose heads compete: the higher priority, then whose client waits longer."""
    left, right = list(reversed(ours)), list(reversed(theirs))
    while left and right:
        a, b = left[-1], right[-1]
        is_left = (-a.priority, a.received_at) <= (-b.priority, b.received_at)
        yield (left if is_left else right).pop()
    yield from reversed(left or right)
