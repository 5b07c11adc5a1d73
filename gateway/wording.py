"""The messages that a gateway's ledger writes, made from a request's record. Pure."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import msgspec

from gateway.attempt import Failure
from gateway.request import End, LiveRequest
from tandem.messages.client import Accepted, Done, Output
from tandem.messages.common import NodeRef, TokenLogprobs
from tandem.messages.placement import PlaceRefused, RequestEnded

MAX_OUTPUT_TOKENS = 64  # with 20 log-probabilities each about 20 KiB of the 64 that are allowed
MAX_OUTPUT_CHARS = 8_000  # of up to four bytes
MAX_HELLO_NODES = 256
MAX_HELLO_NODES_BYTES = 48 * 1024


def accepted(request: LiveRequest, model_fingerprint: str) -> Accepted:
    """The first message to the client."""
    return Accepted(
        label=request.new.label,
        request_id=request.request_id,
        seed=request.new.seed,
        model_fingerprint=model_fingerprint,
        num_prompt_tokens=len(request.new.prompt_ids),
    )


def outputs(
    request_id: bytes,
    first: int,
    ids: Sequence[int],
    logprobs: Sequence[TokenLogprobs],
    text: str,
) -> list[Output]:
    """Tokens from index `first` on, in messages of bounded size; the text goes with the last.

    More text than one may have begins in earlier ones; where there are too few, in some without
    tokens, before all others. `logprobs` are of all tokens, or none.
    """
    if len(ids) <= MAX_OUTPUT_TOKENS and len(text) <= MAX_OUTPUT_CHARS:
        return [_output(request_id, first, ids, logprobs, text)]
    texts = _pieces(text)
    size = max(1, min(MAX_OUTPUT_TOKENS, len(ids) // len(texts)))
    starts = list(range(0, len(ids), size))
    num_messages = max(len(starts), len(texts))
    starts = [0] * (num_messages - len(starts)) + starts
    texts = [""] * (num_messages - len(texts)) + texts
    ends = [*starts[1:], len(ids)]
    return [
        _output(request_id, first + start, ids[start:end], logprobs[start:end], piece)
        for start, end, piece in zip(starts, ends, texts, strict=True)
    ]


def _output(
    request_id: bytes,
    index: int,
    ids: Sequence[int],
    logprobs: Sequence[TokenLogprobs],
    text: str,
) -> Output:
    return Output(
        request_id=request_id,
        index=index,
        token_ids=tuple(ids),
        text=text,
        logprobs=tuple(logprobs),
    )


def _pieces(text: str) -> list[str]:
    """The text in pieces that fit; all but the first are as long as they may be."""
    ends = range(len(text), 0, -MAX_OUTPUT_CHARS)
    return [text[max(0, end - MAX_OUTPUT_CHARS) : end] for end in reversed(ends)] or [""]


def hello_nodes(nodes: Sequence[NodeRef]) -> tuple[NodeRef, ...]:
    """Those that a hello has room for: the newest."""
    newest = sorted(nodes, key=lambda node: node.epoch, reverse=True)[:MAX_HELLO_NODES]
    sizes = accumulate(len(msgspec.msgpack.encode(node)) for node in newest)
    return tuple(newest[: bisect_right(list(sizes), MAX_HELLO_NODES_BYTES)])


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
    request: LiveRequest, end: End, now: float, gateway_id: str, incarnation: int
) -> RequestEnded:
    """The coordinator's record of the end."""
    ttft_s, tpot_s, max_gap_s = request.ttft_s, request.tpot_s, request.max_gap_s
    return RequestEnded(
        gateway_id=gateway_id,
        incarnation=incarnation,
        request_id=request.request_id,
        attempt=max(1, request.attempt_number),  # a resumed stream may have been complete
        reason=end.reason,
        sla_class=_sla_class(request),
        sla_attained=end.reason != "failed" and request.has_attained(now),
        ttft_ms=None if ttft_s is None else ttft_s * 1e3,
        tpot_ms=None if tpot_s is None else tpot_s * 1e3,
        num_output_tokens=request.num_new_tokens,
        num_prompt_tokens=len(request.new.prompt_ids),
        num_cached_tokens=request.num_cached_tokens or 0,
        tenant=request.new.tenant,
        priority=request.new.priority,
        targets=request.targets,
        timeline=request.timeline(now),
        max_itl_ms=None if max_gap_s is None else max_gap_s * 1e3,
        code=end.code,
        message=None if end.message is None else end.message[:2000],
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


def exhausted(request: LiveRequest, last: Failure) -> End:
    """No attempt went well."""
    reasons = "; ".join(failure.message for failure in request.failures)
    text = f"{len(request.failures)} attempts failed: {reasons}"
    return End("failed", code=last.code, message=text)


def poison(request: LiveRequest) -> End:
    """Every node that ran it died."""
    names = [name for failure in request.failures if failure.is_death for name in failure.nodes]
    text = (
        f"suspected poison: nodes died {request.num_deaths} times while they ran this request "
        f"({', '.join(names)}), the last time it ran alone, so it is not run again: look into "
        "those nodes' logs before you submit it once more"
    )
    return End("failed", code="suspected_poison", message=text)


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
