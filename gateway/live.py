"""The live requests: what is delivered of each, and its one terminal state. Pure.

What is to be sent gathers in `out` until the ledger takes it.
"""

from dataclasses import dataclass

from gateway import wording
from gateway.actions import Action, NewRequest, ToClient
from gateway.demands import Demands
from gateway.prefixes import RoutingPrefixes
from gateway.request import End, LiveRequest
from gateway.text import Decode, TextStream, Whole
from gateway.token_stream import Taken, TokenStream
from tandem.messages.common import FinishReason
from tandem.states import RequestState

END_STATES: dict[FinishReason, RequestState] = {
    "stop": RequestState.FINISHED,
    "length": RequestState.FINISHED,
    "cancelled": RequestState.CANCELLED,
    "failed": RequestState.FAILED,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this gateway is, and what its requests must know of the model.

    `prefix_key` keys page hashes; empty: the weights' fingerprint does, as at the nodes.
    """

    gateway_id: str
    incarnation: int
    model_fingerprint: str
    eos_token_ids: tuple[int, ...]
    prefix_key: bytes = b""


class LiveRequests:
    """See the module. Requests by id; `draining` names the nodes that are asked to leave, `leaving`
    those whose requests may move: these, and nodes that take no new sequences any more."""

    def __init__(self, identity: Identity, decode: Decode, whole: Whole | None) -> None:
        self.identity = identity
        self.by_id: dict[bytes, LiveRequest] = {}
        self.demands = Demands()
        self.prefixes = RoutingPrefixes(
            key=identity.prefix_key, weights_fingerprint=identity.model_fingerprint
        )
        self.draining: frozenset[str] = frozenset()
        self.leaving: frozenset[str] = frozenset()
        self.out: list[Action] = []
        self.num_prompt_tokens = 0
        self.num_output_tokens = 0  # delivered since the start
        self.num_computed_tokens = 0  # of prompts of requests that ended, and those that were
        self.num_cached_tokens = 0  # found in a node's cache
        self.num_dropped = 0
        self._decode = decode
        self._whole = whole

    def enter(self, new: NewRequest, now: float) -> LiveRequest | None:
        """Take a request in; None where what the client has of it already was its end."""
        assert new.params.max_tokens is not None, "admission resolves max_tokens"
        end_ids = frozenset(new.params.stop_token_ids)
        if not new.params.ignore_eos:
            end_ids |= frozenset(self.identity.eos_token_ids)
        request = LiveRequest(
            new=new,
            stream=TokenStream(new.params.max_tokens, new.delivered.array.tolist()),
            text=TextStream(self._decode, new.params.stop, end_ids, self._whole),
            end_ids=end_ids,
        )
        self.by_id[new.request_id] = request
        self.num_prompt_tokens += len(new.prompt_ids)
        accepted = wording.accepted(request, self.identity.model_fingerprint)
        self.out.append(ToClient(new.client, accepted))
        if request.stream.next_index:
            self._resume(request, now)
        return self.by_id.get(new.request_id)

    def _resume(self, request: LiveRequest, now: float) -> None:
        text, stop = request.text.resume(request.stream.ids, request.new.num_chars)
        if text:
            self.say(request, request.stream.next_index, ((), ()), text)
        if stop is not None:
            self.end(request, End("stop", stop_string=stop), now)
        elif request.is_complete():
            self.end_complete(request, now)

    def deliver(self, request: LiveRequest, new: Taken, now: float) -> None:
        """Stream accepted tokens to the client, up to a stop string."""
        ids, logprobs = new
        if not ids:
            return
        first = request.stream.next_index - len(ids)
        request.note_tokens(now)
        text, push = "", request.text.push
        for position, token_id in enumerate(ids, 1):
            piece, stop = push(token_id)
            text += piece
            if stop is not None:
                request.stream.cut(first + position)
                self.say(request, first, (ids[:position], logprobs[:position]), text)
                self.end(request, End("stop", stop_string=stop), now)
                return
        self.say(request, first, new, text)
        self.finish_if_complete(request, now)

    def say(self, request: LiveRequest, first: int, new: Taken, text: str) -> None:
        """Send tokens from index `first` on, and text, to the client."""
        self.num_output_tokens += len(new[0])
        for output in wording.outputs(request.request_id, first, *new, text):
            self.out.append(ToClient(request.new.client, output))

    def finish_if_complete(self, request: LiveRequest, now: float) -> None:
        """The end comes when it is known and all tokens before it are delivered."""
        ending = None if request.attempt is None else request.attempt.ending
        if ending is not None and request.stream.next_index >= ending.end_index:
            self.end(request, End(ending.reason), now)

    def end_complete(self, request: LiveRequest, now: float) -> None:
        """The delivered tokens are the whole answer, whatever became of the nodes."""
        is_stop = request.stream.ids[-1] in request.end_ids
        self.end(request, End("stop" if is_stop else "length"), now)

    def end_overdue(self, request: LiveRequest, now: float) -> bool:
        """End a request whose deadline has passed; False for another."""
        if request.deadline is None or now < request.deadline:
            return False
        text = f"not finished within its deadline of {request.new.deadline_s:g} s"
        self.end(request, End("failed", code="deadline_exceeded", message=text), now)
        return True

    def end(self, request: LiveRequest, end: End, now: float) -> None:
        """The terminal state: told to the client and the coordinator, once."""
        del self.by_id[request.request_id]
        num_prompt, num_cached = len(request.new.prompt_ids), request.num_cached_tokens or 0
        self.num_prompt_tokens -= num_prompt
        self.num_computed_tokens += num_prompt - num_cached
        self.num_cached_tokens += num_cached
        self.demands.drop_question(request.request_id)
        if request.attempt is not None:
            nodes = request.attempt.busy_nodes(is_cut=end.is_cut)
            self.demands.stop(request.request_id, request.attempt, nodes, now)
        if end.stop_string is None:
            text, stop = request.text.flush()
            if text:
                self.say(request, request.stream.next_index, ((), ()), text)
            if stop is not None and not end.is_cut:
                end = End("stop", stop_string=stop)
        request.enter(END_STATES[end.reason])
        self.out.append(ToClient(request.new.client, wording.done(request, end, now)))
        identity = self.identity
        report = wording.ended(request, end, now, identity.gateway_id, identity.incarnation)
        self.demands.report_end(report, now)
