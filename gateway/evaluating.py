"""`Evaluate` for the HTTP door: a coroutine per evaluation, around their ledger."""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from gateway.actions import ToCoordinator, ToNode
from gateway.admission import Offer, Rejected
from gateway.evaluation_request import NewEvaluation, check_asked, read_answer
from gateway.evaluations import EvaluationAction, EvaluationEnded, EvaluationLedger
from gateway.http.errors import explain
from gateway.http.services import Evaluated, EvaluationAsked
from gateway.request import End
from tandem.messages.common import NodeRef
from tandem.messages.evaluation import EvaluationAnswer, EvaluationDone
from tandem.messages.placement import Placed, PlaceRefused, RequestEndedAck

MANY_LOGPROBS = 10_000  # making Python objects of more would hold up every stream


@dataclass(frozen=True, slots=True)
class Entered:
    """Whose an evaluation is, and the SLA class that it comes under (None: the default)."""

    tenant: str
    tenant_weight: float
    sla_class: str | None


Enter = Callable[[bytes, EvaluationAsked, str | None], Entered]
"""Makes room under a request id for what a key asks for; raises `Rejected`."""


class Evaluations:
    """The `Evaluate` of `gateway.http.services`. Lives on the gateway's event loop.

    `enter` makes room, `leave` frees it; `ended` is told task and outcome. Its shell passes on what
    coordinator and nodes say, and the time; a message that it answers True is nobody else's.
    """

    def __init__(
        self,
        ledger: EvaluationLedger,
        *,
        offer: Callable[[], Offer],
        enter: Enter,
        leave: Callable[[bytes], None],
        to_node: Callable[[NodeRef, msgspec.Struct], object],
        to_coordinator: Callable[[msgspec.Struct], object],
        ended: Callable[[str, str], None],
    ) -> None:
        self._ledger = ledger
        self._offer = offer
        self._enter = enter
        self._leave = leave
        self._to_node = to_node
        self._to_coordinator = to_coordinator
        self._ended = ended
        self._waiting: dict[bytes, asyncio.Future[EvaluationDone | End]] = {}

    def __len__(self) -> int:
        return len(self._ledger)

    @property
    def nodes(self) -> tuple[NodeRef, ...]:
        """Nodes that run some."""
        return self._ledger.nodes

    async def __call__(self, asked: EvaluationAsked, *, key: str | None) -> Evaluated:
        """Run it on a prefill node; raises `ApiError`. Cancelling frees it."""
        outcome = "internal"
        try:
            answered = await self._evaluate(asked, key)
            outcome = "ok"
        except Rejected as rejected:
            outcome = rejected.code
            raise explain(rejected) from None
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._ended(asked.task, outcome)
        return answered

    async def _evaluate(self, asked: EvaluationAsked, key: str | None) -> Evaluated:
        """Raises Rejected."""
        request_id = secrets.token_bytes(16)
        check_asked(asked, self._offer())
        entered = self._enter(request_id, asked, key)
        new = NewEvaluation(
            request_id=request_id,
            asked=asked,
            received=time.monotonic(),
            received_unix_s=time.time(),
            tenant=entered.tenant,
            tenant_weight=entered.tenant_weight,
            sla_class=entered.sla_class,
        )
        answer = await self._run(new)
        if isinstance(answer, End):
            code = answer.code or "internal"
            raise Rejected(code, answer.message or code, answer.retry_after_s)
        if len(asked.prompt_ids) * (1 + asked.num_top) < MANY_LOGPROBS:
            return read_answer(answer, asked)
        return await asyncio.to_thread(read_answer, answer, asked)

    async def _run(self, new: NewEvaluation) -> EvaluationDone | End:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[EvaluationDone | End] = loop.create_future()
        self._waiting[new.request_id] = waiting
        try:
            self._execute(self._ledger.submit(new, new.received))
            return await waiting
        finally:  # its caller may have hung up
            del self._waiting[new.request_id]
            self._execute(self._ledger.cancel(new.request_id, time.monotonic()))
            self._leave(new.request_id)

    # --- what the shell passes on -----------------------------------------------------------

    def from_coordinator(self, message: msgspec.Struct, now: float) -> bool:
        """A message of the coordinator; True where it is about an evaluation."""
        is_own = False
        if isinstance(message, Placed | PlaceRefused | RequestEndedAck):
            is_own = self._ledger.owns(message.request_id)
            if not is_own:
                return False
        self._execute(self._ledger.from_coordinator(message, now))
        return is_own

    def from_node(self, node: NodeRef, message: msgspec.Struct, now: float) -> bool:
        """A message of a node; True where it is about an evaluation."""
        is_own = isinstance(message, EvaluationAnswer)
        if is_own:
            self._execute(self._ledger.from_node(node, message, now))
        return is_own

    def tick(self, now: float) -> None:
        """Time passes; to be called every 0.1 s."""
        self._execute(self._ledger.tick(now))

    def end_all(self, now: float) -> None:
        """The gateway stops: nobody is left without an answer."""
        self._execute(self._ledger.end_all(now))

    def _execute(self, actions: Iterable[EvaluationAction]) -> None:
        for action in actions:
            match action:
                case ToNode(node, message):
                    self._to_node(node, message)
                case ToCoordinator(message):
                    self._to_coordinator(message)
                case EvaluationEnded(request_id, answer):
                    waiting = self._waiting.get(request_id)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(answer)
