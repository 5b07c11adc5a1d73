"""Attempts: asked for, started, doubted, failed, followed by others. Pure.

A node's death is never held against its requests, until they were there too often; other
failures are: three, and they take turns.
"""

from gateway import wording
from gateway.actions import CloseNode
from gateway.attempt import Attempt, Doubt, Failure, Move
from gateway.live import LiveRequests
from gateway.request import End, LiveRequest
from gateway.retries import RetryTurns
from tandem.messages.common import ErrorCode, NodeRef
from tandem.messages.placement import NodeDown, Placed, PlaceRefused
from tandem.messages.serving import AttemptStatus, CommandRefused, Ending
from tandem.states import RequestState

MAX_FAILURES = 3
MAX_DEATHS = 2  # after these a request runs once more, alone
PLACE_TIMEOUT_S = 30.0
# A request that lost its nodes waits this long for new ones before it fails.
FAIL_OVER_WAIT_S = 30.0
# Nodes answer commands on arrival, and commands are resent every 2 s: some five were lost.
ANSWER_TIMEOUT_S = 10.0
# A node that lost sight of this gateway for half a minute has forgotten its requests.
SILENCE_S = 10.0
DOUBT_S = 1.5  # a decode node answers on arrival; asked at once, after 0.5 and after 1.5 s

# Another attempt could end otherwise; every other failure would repeat itself.
RETRYABLE: frozenset[ErrorCode] = frozenset(
    {"node_failed", "transfer_failed", "unavailable", "overloaded", "internal"}
)
# A node that has closed a role said so in its last heartbeat, or will with the next.
CLOSED_RETRY_S = 0.5

# Refusals that pass: whoever was running once is asked for again until then.
PASSING: frozenset[ErrorCode] = frozenset(
    {
        "no_prefill_node",
        "no_decode_node",
        "overloaded",
        "rate_limited",
        "too_few_pages",  # of the nodes that are left
        "unavailable",
    }
)


class Attempts:
    """See the module."""

    def __init__(self, live: LiveRequests) -> None:
        self._live = live
        self._demands = live.demands
        self._turns = RetryTurns()

    # --- placement --------------------------------------------------------------------------

    def ask(self, request: LiveRequest, now: float, move: Move | None = None) -> None:
        """Ask the coordinator for nodes: for the next attempt, or to move the one that runs."""
        if move is None:
            request.asked_at, request.ask_at, request.refused = now, None, None
        identity = self._live.identity
        request.chain = self._live.prefixes.chain(request.new.tenant, request.chain)
        known_as = (identity.gateway_id, identity.incarnation)
        place = request.place(*known_as, request.prefixes(), now, move)
        self._demands.ask_placement(place, now)

    def first(self, request: LiveRequest, now: float) -> None:
        """Ask for the first attempt."""
        request.enter(RequestState.PLACING)
        request.attempt_number = request.next_number()
        self.ask(request, now)

    def placed(self, request: LiveRequest, placed: Placed, now: float) -> None:
        """The coordinator's answer to the question that the request waits for."""
        if not _is_awaited(request, placed):
            self._live.num_dropped += 1
            return
        self.start(request, placed, now)

    def start(self, request: LiveRequest, placed: Placed, now: float) -> None:
        """Take a placement, and command its nodes."""
        self._demands.drop_question(request.request_id)
        attempt = request.start_attempt(placed, now)
        down = [node for node in attempt.nodes if self._demands.is_down(node)]
        if down:
            names = tuple(node.node_id for node in down)
            text = f"node {names[0]} is down"
            self.fail(request, Failure("node_failed", text, names, is_death=True), now)
            return
        self._demands.command(request.spec(attempt, now), attempt, now)

    def refused(self, request: LiveRequest, refused: PlaceRefused, now: float) -> None:
        """The coordinator has no nodes: an end, unless the request lost those that it had."""
        if not _is_awaited(request, refused):
            self._live.num_dropped += 1
            return
        assert request.asked_at is not None, "it is awaited"
        has_begun = bool(request.failures) or len(request.new.delivered) > 0
        is_fail_over = has_begun and refused.code in PASSING
        if is_fail_over and now < request.asked_at + FAIL_OVER_WAIT_S:
            request.refused = refused  # the question is repeated until there are nodes again
            return
        self._live.end(request, wording.refusal(refused), now)

    # --- time -------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Whose turn has come, and who has waited for too long."""
        for request in list(self._live.by_id.values()):
            attempt = request.attempt
            if self._live.end_overdue(request, now):
                continue
            if request.state is RequestState.PLACING:
                self._check_placing(request, now)
            elif attempt is not None:
                self._check_attempt(request, attempt, now)
        for request in self._turns.next(self._live.by_id):
            self.ask(request, now)

    def _check_placing(self, request: LiveRequest, now: float) -> None:
        if request.ask_at is not None and now >= request.ask_at:
            self.ask(request, now)
        if request.asked_at is None or now < request.asked_at + PLACE_TIMEOUT_S:
            return
        if request.refused is None:
            self._live.end(request, wording.no_coordinator(PLACE_TIMEOUT_S), now)
        else:
            self._live.end(request, wording.refusal(request.refused), now)

    def _check_attempt(self, request: LiveRequest, attempt: Attempt, now: float) -> None:
        """A node may be heard by the coordinator and still be out of this gateway's reach."""
        if attempt.doubt is not None:
            if now >= attempt.doubt.until:
                self.fail(request, attempt.doubt.failure, now)
            return
        if request.state is RequestState.DECODING:
            self._check_silence(request, attempt, now)
            return
        if now <= attempt.sent + ANSWER_TIMEOUT_S:
            return
        self._check_presence(request, attempt, now)
        for node in reversed(attempt.nodes):
            if not self._demands.has_answered(request.request_id, attempt, node):
                text = wording.unreachable(node, ANSWER_TIMEOUT_S)
                failure = Failure("node_failed", text, (node.node_id,))
                self._fail_at(request, attempt, node, failure, now)
                return

    def _check_silence(self, request: LiveRequest, attempt: Attempt, now: float) -> None:
        """A request may wait long for its turn to decode; its node still says that it is there."""
        if now > attempt.heard_at + SILENCE_S:
            node = attempt.decode.node_id
            text = f"{node} said nothing of the request for {2 * SILENCE_S:g} s"
            attempt.doubt = Doubt(now + SILENCE_S, Failure("unavailable", text, (node,)))
            self._demands.ask_attempt(request.request_id, attempt, [attempt.decode], now)

    def _check_presence(self, request: LiveRequest, attempt: Attempt, now: float) -> None:
        """A prompt may wait long for its turn; its nodes still say that it is there."""
        if attempt.answers is None and now > attempt.heard_at + SILENCE_S:
            attempt.answers = {}
            self._demands.ask_attempt(request.request_id, attempt, attempt.nodes, now)
        elif attempt.answers is not None and now > attempt.heard_at + 2 * SILENCE_S:
            silent = [n.node_id for n in attempt.nodes if n.node_id not in attempt.answers]
            text = f"{', '.join(silent)} did not answer for {SILENCE_S:g} s"
            self.fail(request, Failure("unavailable", text, tuple(silent)), now)

    # --- failures ---------------------------------------------------------------------------

    def node_gave_up(
        self, request: LiveRequest, attempt: Attempt, node: NodeRef, ending: Ending, now: float
    ) -> None:
        """A node that cancels a request unasked (it drains, or lost sight of us) failed it."""
        is_named = ending.code is not None and ending.code != "cancelled"
        code: ErrorCode = ending.code if is_named and ending.code is not None else "unavailable"
        message = ending.message or f"{node.node_id} gave the request up"
        self._fail_at(request, attempt, node, Failure(code, message, (node.node_id,)), now)

    def command_refused(
        self, request: LiveRequest, node: NodeRef, refused: CommandRefused, now: float
    ) -> None:
        """A node of the attempt did not take its command."""
        text = f"{node.node_id}: {refused.message}"
        self.fail(request, Failure(refused.code, text, (node.node_id,)), now)

    def node_down(self, down: NodeDown, now: float) -> None:
        """A node lost its lease: attempts on it are over, unless decode already carries on."""
        if not self._demands.note_down(down):
            return
        for request in list(self._live.by_id.values()):
            attempt = request.attempt
            lost = () if attempt is None else tuple(filter(self._demands.is_down, attempt.nodes))
            if attempt is None or not lost:
                continue
            names = tuple(node.node_id for node in lost)
            text = f"node {down.node_id} is down: {down.reason}"
            failure = Failure("node_failed", text, names, is_death=True)
            # Of two nodes that are down the decode node's end is the attempt's.
            self._fail_at(request, attempt, lost[-1], failure, now)
        # Cancels follow it: they open a new link, which is closed once they are answered.
        self._live.out.append(CloseNode(down.node_id, down.epoch, down.reason))

    def _fail_at(
        self, request: LiveRequest, attempt: Attempt, node: NodeRef, failure: Failure, now: float
    ) -> None:
        """A node failed. Without its prefill node an attempt goes on where decode has the KV."""
        if attempt.is_decoder(node):
            self.fail(request, failure, now)
        elif request.state is RequestState.DECODING:
            self._let_go(request, attempt)
        elif attempt.doubt is None:
            attempt.doubt, attempt.answers = Doubt(now + DOUBT_S, failure), None
            self._demands.ask_attempt(request.request_id, attempt, [attempt.decode], now)

    def status(
        self,
        request: LiveRequest,
        attempt: Attempt,
        node: NodeRef,
        answer: AttemptStatus,
        now: float,
    ) -> None:
        """A node says what it has: of an attempt in doubt, or of one that nobody spoke of."""
        if attempt.doubt is not None and attempt.is_decoder(node):
            if answer.has_kv:
                self.carried_on(request, attempt, now)
            else:
                self.fail(request, attempt.doubt.failure, now)
        elif attempt.doubt is None and attempt.answers is not None:
            attempt.answers[node.node_id] = answer
            self._weigh_answers(request, attempt, now)
        else:
            self._live.num_dropped += 1

    def _weigh_answers(self, request: LiveRequest, attempt: Attempt, now: float) -> None:
        """The attempt is there where the decode node has its KV, or every node has its part."""
        assert attempt.answers is not None, "somebody was asked"
        told = [attempt.answers.get(node.node_id) for node in attempt.nodes]
        at_decode = told[-1]
        has_kv = at_decode is not None and at_decode.has_kv
        if not has_kv and None in told:
            return
        self._demands.drop_ask(request.request_id, attempt)
        attempt.answers = None
        if has_kv or all(each is not None and each.is_here for each in told):
            attempt.heard_at = now
        else:
            text = "its nodes have forgotten the request"
            self.fail(request, Failure("unavailable", text), now)

    def carried_on(self, request: LiveRequest, attempt: Attempt, now: float) -> None:
        """The decode node has the KV: from here on the prefill node does not matter."""
        if request.state is not RequestState.DECODING:
            request.enter(RequestState.DECODING)
        attempt.is_move, attempt.heard_at = False, now
        attempt.answers = None
        if attempt.doubt is not None:
            attempt.doubt = None
            self._demands.drop_ask(request.request_id, attempt)
            self._let_go(request, attempt)

    def _let_go(self, request: LiveRequest, attempt: Attempt) -> None:
        """Ask nothing more of a prefill node that failed when its work was done."""
        prefill = attempt.prefill
        if prefill is not None:
            self._demands.withdraw(request.request_id, attempt, prefill)
            if self._demands.is_down(prefill):
                attempt.busy = [node for node in attempt.busy if node != prefill]

    def fail(self, request: LiveRequest, failure: Failure, now: float) -> None:
        """End the attempt on all its nodes; start another one, finish, or give up."""
        attempt = request.attempt
        assert attempt is not None, "only an attempt fails"
        if attempt.doubt is not None and not failure.is_death:
            failure = attempt.doubt.failure  # what came first; the rest followed from it
        was_resident = self._was_resident(request, attempt, failure)
        nodes = attempt.busy_nodes(is_cut=True)
        self._demands.stop(request.request_id, attempt, nodes, now)
        self._demands.drop_question(request.request_id)
        attempt.busy, attempt.doubt, attempt.answers = [], None, None
        request.failures.append(failure)
        if not attempt.is_move:
            request.num_deaths += was_resident
            request.num_failures += not (failure.is_death or failure.is_closed)
        if request.is_complete():
            self._live.end_complete(request, now)
        elif self._live.end_overdue(request, now):
            pass
        elif (end := self._verdict(request, attempt, failure)) is not None:
            self._live.end(request, end, now)
        else:
            self._again(request, attempt, failure, now)

    def _was_resident(self, request: LiveRequest, attempt: Attempt, failure: Failure) -> bool:
        """Whether a node went down that had taken the attempt; one that drained left in peace."""
        return failure.is_death and any(
            node.node_id in failure.nodes
            and node.node_id not in self._live.draining
            and node in attempt.busy
            and self._demands.has_answered(request.request_id, attempt, node)
            for node in attempt.nodes
        )

    def _verdict(self, request: LiveRequest, attempt: Attempt, failure: Failure) -> End | None:
        """The end of a request that must not be tried again."""
        if attempt.is_move:
            return None  # it ran well before we moved it
        if request.num_deaths > MAX_DEATHS:
            return wording.poison(request)
        if failure.is_death or failure.is_closed:
            return None
        if failure.code not in RETRYABLE:
            return End("failed", code=failure.code, message=failure.message)
        if request.num_failures >= MAX_FAILURES:
            return wording.exhausted(request, failure)
        return None

    def _again(self, request: LiveRequest, attempt: Attempt, failure: Failure, now: float) -> None:
        request.attempt = request.move = None
        request.attempt_number = request.next_number()
        request.stream.drop_ahead()
        request.enter(RequestState.PLACING)
        request.asked_at = None
        if failure.is_closed and sum(each.is_closed for each in request.failures) > 1:
            request.ask_at = now + CLOSED_RETRY_S  # the coordinator has not heard of it yet
            return
        if failure.is_death or failure.is_closed or attempt.is_move:
            self.ask(request, now)
            return
        self._turns.wait(request)
        for other in self._turns.next(self._live.by_id):
            self.ask(other, now)


def _is_awaited(request: LiveRequest, answer: Placed | PlaceRefused) -> bool:
    number = request.attempt_number
    is_placing = request.state is RequestState.PLACING and request.asked_at is not None
    return is_placing and answer.attempt == number
