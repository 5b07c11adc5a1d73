"""Checks a client's request and completes it; what cannot be served is told why. Pure.

Cheap checks come before tokenising, the ones on token counts after it.
"""

from dataclasses import dataclass

import msgspec

from gateway.actions import NewRequest
from tandem.frames import TokenIds
from tandem.messages.client import ResumePoint, Submit
from tandem.messages.common import ErrorCode
from tandem.sampling import (
    GenerationDefaults,
    SamplingParams,
    validate,
    with_model_defaults,
)


class Rejected(ValueError):
    """A request cannot be served as it is; the text says what to do."""

    def __init__(self, code: ErrorCode, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Offer:
    """What this gateway serves now. `sla_classes` is empty before the first welcome.

    `num_labels` of the model's classification head; 0: it has none, and generates.
    """

    model: str
    vocab_size: int
    max_model_len: int
    defaults: GenerationDefaults
    sla_classes: tuple[str, ...] = ()
    num_labels: int = 0


def check_submit(submit: Submit, offer: Offer) -> None:
    """All that needs no tokenizer. Raises Rejected."""
    if submit.model is not None and submit.model != offer.model:
        raise Rejected(
            "unknown_model",
            f"this deployment serves {offer.model}, not {submit.model}: name it, or no model",
        )
    if offer.num_labels:
        raise Rejected(
            "invalid_request",
            f"{offer.model} has a classification head and generates no text: ask for scores, "
            "a ranking or embeddings, or serve a checkpoint that generates",
        )
    num_prompts = sum([submit.prompt is not None, submit.prompt_ids is not None, bool(submit.chat)])
    if num_prompts != 1:
        raise Rejected(
            "invalid_request",
            f"{num_prompts} of prompt, prompt_ids and chat are given: give exactly one",
        )
    if not (submit.prompt or submit.prompt_ids or submit.chat):
        raise Rejected("invalid_request", "the prompt is empty: give at least one token")
    if submit.sla_class is not None and offer.sla_classes:
        _check_class(submit.sla_class, offer)
    try:
        validate(submit.params, offer.vocab_size, offer.max_model_len)
    except ValueError as error:
        raise Rejected("invalid_request", str(error)) from None


def _check_class(name: str, offer: Offer) -> None:
    if name not in offer.sla_classes:
        raise Rejected(
            "unknown_sla_class",
            f"there is no SLA class {name!r}: use one of {', '.join(offer.sla_classes)}",
        )


def check_prompt_ids(ids: TokenIds, offer: Offer) -> None:
    """Bounds of the prompt's token ids and their number. Raises Rejected."""
    if not len(ids):
        raise Rejected("invalid_request", "the prompt is empty: give at least one token")
    _check_ids("prompt_ids", ids, offer)
    if len(ids) >= offer.max_model_len:
        raise Rejected(
            "context_too_long",
            f"the prompt has {len(ids)} tokens and the context is {offer.max_model_len}, of which "
            f"the answer needs at least one: shorten the prompt to {offer.max_model_len - 1}",
        )


def _check_ids(field: str, ids: TokenIds, offer: Offer) -> None:
    """Every id is one of the model's. Raises Rejected."""
    if not len(ids):
        return
    lowest, highest = int(ids.array.min()), int(ids.array.max())
    if lowest < 0 or highest >= offer.vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise Rejected(
            "invalid_request",
            f"{field} has the id {wrong}, and the model's ids are 0 to {offer.vocab_size - 1}: "
            "use this model's tokenizer",
        )


def resolve_params(params: SamplingParams, num_prompt_tokens: int, offer: Offer) -> SamplingParams:
    """Model defaults filled in and max_tokens resolved. Raises Rejected."""
    room = offer.max_model_len - num_prompt_tokens
    max_tokens = room if params.max_tokens is None else params.max_tokens
    if max_tokens > room:
        raise Rejected(
            "context_too_long",
            f"the prompt has {num_prompt_tokens} tokens and max_tokens is {max_tokens}, together "
            f"{num_prompt_tokens + max_tokens}; the context is {offer.max_model_len}: lower "
            f"max_tokens to {room}, leave it out, or shorten the prompt",
        )
    if params.min_tokens > max_tokens:
        raise Rejected(
            "invalid_request",
            f"min_tokens is {params.min_tokens}, and only {max_tokens} tokens are left for the "
            "answer: lower it, or shorten the prompt",
        )
    resolved = with_model_defaults(params, offer.defaults)
    return msgspec.structs.replace(resolved, max_tokens=max_tokens)


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose it is, where and when a request came in, and the random numbers it may need."""

    client: bytes
    request_id: bytes
    random_seed: int
    received: float
    received_unix_s: float
    tenant: str = "default"
    tenant_weight: float = 1.0


def admit(submit: Submit, ids: TokenIds, offer: Offer, origin: Origin) -> NewRequest:
    """The request for the ledger. Raises Rejected."""
    check_prompt_ids(ids, offer)
    seed = submit.params.seed
    params = resolve_params(submit.params, len(ids), offer)
    resume = ResumePoint(output_ids=TokenIds(), num_chars=0)
    if submit.resume is not None:
        resume = submit.resume
        _check_resume(resume, params, offer)
    return NewRequest(
        request_id=origin.request_id,
        client=origin.client,
        label=submit.label,
        prompt_ids=ids,
        params=params,
        seed=origin.random_seed if seed is None else seed,
        sla_class=submit.sla_class,
        ttft_ms=submit.ttft_ms,
        tpot_ms=submit.tpot_ms,
        priority=submit.priority,
        deadline_s=submit.deadline_s,
        received=origin.received,
        received_unix_s=origin.received_unix_s,
        tenant=origin.tenant,
        tenant_weight=origin.tenant_weight,
        delivered=resume.output_ids,
        num_chars=resume.num_chars,
        choice=submit.choice,
    )


def _check_resume(resume: ResumePoint, params: SamplingParams, offer: Offer) -> None:
    """What a client says it has must be what this model could have said. Raises Rejected."""
    if params.seed is None:
        raise Rejected(
            "invalid_request",
            "resume needs the seed that the first gateway answered with (Accepted.seed): set "
            "params.seed to it",
        )
    _check_ids("resume.output_ids", resume.output_ids, offer)
    assert params.max_tokens is not None, "resolve_params sets it"
    if len(resume.output_ids) > params.max_tokens:
        raise Rejected(
            "invalid_request",
            f"resume has {len(resume.output_ids)} tokens and max_tokens is {params.max_tokens}: "
            "send the max_tokens of the first request",
        )
