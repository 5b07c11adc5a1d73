"""What was decided about a request and why, in words. Pure."""

from scheduling.routing.early_rejection import Admitted
from tandem.messages.common import SlaTargets
from tandem.messages.placement import Place, Placed, PlaceRefused, RequestEnded

SUSPECT_DEATHS = 2


def asked_again(question: Place) -> str:
    """Why there is another attempt."""
    if question.move_from is not None:
        return (
            f"attempt {question.attempt}: its gateway moves it away from {question.move_from}, "
            "whose KV it keeps until another node decodes it"
        )
    failed = f" after {', '.join(question.avoid)} failed it" if question.avoid else ""
    text = f"attempt {question.attempt}{failed}: {question.num_output_tokens} tokens were delivered"
    if question.num_deaths >= SUSPECT_DEATHS:
        return f"{text}; {question.num_deaths} nodes died with it, so it runs alone"
    if question.num_deaths:
        return f"{text}; a node died with it"
    return text


def held(reason: str) -> str:
    """It waits at the coordinator."""
    return f"held until there is room: {reason}" if reason else "held: others wait before it"


def placed(question: Place, answer: Placed, admitted: Admitted | None, held_s: float | None) -> str:
    """Where it runs."""
    targets = answer.targets
    if question.is_evaluation:
        where = f"evaluated on {(answer.prefill or answer.decode).node_id}"
    elif answer.prefill is None:
        where = f"prompt and tokens on {answer.decode.node_id}"
    else:
        where = f"prompt on {answer.prefill.node_id}, tokens on {answer.decode.node_id}"
    waited = "" if held_s is None else f" after {held_s * 1e3:.0f} ms of waiting for room"
    parts = [f"placed{waited}: {where}"]
    if admitted is not None:
        if admitted.placement.why:
            parts.append(admitted.placement.why)
        predicted = admitted.predicted
        if predicted.ttft_s is not None:
            parts.append(
                f"predicted TTFT {predicted.ttft_s * 1e3:.0f} ms of {targets.ttft_ms:g} ms"
            )
        if predicted.tpot_s is not None:
            parts.append(
                f"predicted TPOT {predicted.tpot_s * 1e3:.1f} ms of {targets.tpot_ms:g} ms"
            )
    return "; ".join(parts)


def refused(answer: PlaceRefused) -> str:
    """Why it does not run."""
    again = ""
    if answer.retry_after_s is not None:
        again = f"; its client was told to come back after {answer.retry_after_s:.1f} s"
    return f"refused ({answer.code}): {answer.message}{again}"


def wished_away() -> str:
    """The coordinator would have it elsewhere."""
    return "its gateway was asked to move it: its decode node is short of KV pages"


def ended(report: RequestEnded, targets: SlaTargets) -> str:
    """How it ended, and whether that was in time."""
    tokens = f"{report.num_output_tokens} tokens"
    if report.is_evaluation:
        tokens = f"an evaluation of {report.num_prompt_tokens} tokens"
    if report.reason == "failed":
        return f"failed after {tokens} ({report.code or 'internal'}): {report.message or ''}"
    if report.reason == "cancelled":
        how = f"cancelled after {tokens}" + (f" ({report.message})" if report.message else "")
    else:
        how = f"ended after {tokens} ({report.reason})"
    late = []
    if report.ttft_ms is not None and report.ttft_ms > targets.ttft_ms:
        late.append(f"TTFT {report.ttft_ms:.0f} ms of {targets.ttft_ms:g} ms")
    if report.tpot_ms is not None and report.tpot_ms > targets.tpot_ms:
        late.append(f"TPOT {report.tpot_ms:.1f} ms of {targets.tpot_ms:g} ms")
    if late:
        return f"{how}; late: {', '.join(late)}"
    return f"{how}; both targets were kept" if report.sla_attained else how
