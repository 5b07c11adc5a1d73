"""The messages that a gateway's ledger writes, made from a request's record. Pure."""

from collections.abc import Sequence

from gateway.request import End, LiveRequest
from gateway.token_stream import Token
from tandem.messages.client import Accepted, Done, Output
from tandem.messages.common import FinishReason, NodeRef
from tandem.messages.placement import PlaceRefused, RequestEnded

MAX_OUTPUT_TOKENS = 64  # with 20 log-probabilities each about 20 KiB of the 64 that are allowed


def accepted(request: LiveRequest, model_fingerprint: str) -> Accepted:
    """The first message to the client."""
    return Accepted(
        label=request.new.label,
        request_id=request.request_id,
        seed=request.new.seed,
        model_fingerprint=model_fingerprint,
        num_prompt_tokens=len(request.new.prompt_ids),
    )


def outputs(request_id: bytes, first: int, tokens: Sequence[Token], text: str) -> list[Output]:
    """Tokens from index `first` on, in messages of bounded size; the text goes with the last."""
    starts = range(0, max(len(tokens), 1), MAX_OUTPUT_TOKENS)
    messages = []
    for at in starts:
        part = tokens[at : at + MAX_OUTPUT_TOKENS]
        messages.append(
            Output(
                request_id=request_id,
                index=first + at,
                token_ids=tuple(token.token_id for token in part),
                text=text if at == starts[-1] else "",
                logprobs=tuple(token.logprobs for token in part if token.logprobs is not None),
            )
        )
    return messages


def done(request: LiveRequest, end: End, now: float) -> Done:
    """The last message to the client."""
    return Done(
        request_id=request.request_id,
        reason=end.reason,
        usage=request.usage(),
        timeline=request.timeline(now),
        sla_class=_sla_class(request),
        sla_attained=end.reason != "failed" and request.has_attained(now),
        stop_string=end.stop_string,
        code=end.code,
        message=None if end.message is None else end.message[:2000],
        retry_after_s=end.retry_after_s,
    )


def ended(
    request: LiveRequest, reason: FinishReason, now: float, gateway_id: str, incarnation: int
) -> RequestEnded:
    """The coordinator's record of the end."""
    ttft_s, tpot_s = request.ttft_s, request.tpot_s
    return RequestEnded(
        gateway_id=gateway_id,
        incarnation=incarnation,
        request_id=request.request_id,
        attempt=request.attempt_number,
        reason=reason,
        sla_class=_sla_class(request),
        sla_attained=reason != "failed" and request.has_attained(now),
        ttft_ms=None if ttft_s is None else ttft_s * 1e3,
        tpot_ms=None if tpot_s is None else tpot_s * 1e3,
        num_output_tokens=request.stream.next_index,
    )


def refusal(refused: PlaceRefused) -> End:
    """The coordinator's own words."""
    return End(
        "failed",
        code=refused.code,
        message=refused.message,
        retry_after_s=refused.retry_after_s,
    )


def no_coordinator(waited_s: float) -> End:
    """Nobody answered the question for nodes."""
    text = (
        f"no coordinator has answered for {waited_s:g} s: start one with "
        "scripts/launch_coordinator, or check the gateway's --coordinator address"
    )
    return End("failed", code="unavailable", message=text, retry_after_s=5.0)


def unreachable(node: NodeRef, waited_s: float) -> str:
    """The coordinator hears the node, this gateway does not."""
    return (
        f"node {node.node_id} has not answered at {node.control_address} for {waited_s:g} s: check "
        "that its --advertised-host can be reached from the gateway, and the firewall between them"
    )


def _sla_class(request: LiveRequest) -> str:
    if request.targets is not None:
        return request.targets.sla_class
    return request.new.sla_class or ""
