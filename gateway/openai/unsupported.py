"""Fields of OpenAI's and other servers' APIs that this one does not have.

Those that would change the answer are refused, so that nobody takes an unconstrained answer for a
constrained one; hints that change none are ignored, and logged once per process.
"""

import logging
from typing import Any

import msgspec

from gateway.http.errors import ApiError

logger = logging.getLogger(__name__)

_GUIDED = "use response_format with a json_schema"
_TEMPLATE = "the model's own chat template is used: change the template of the model folder"
_TEXT_ONLY = "this model reads and writes text alone: leave it out"
REFUSED: dict[str, str] = {
    "allowed_token_ids": "use logit_bias",
    "audio": _TEXT_ONLY,
    "bad_words": "use logit_bias",
    "bootstrap_host": "the gateway chooses nodes and pages by itself",
    "bootstrap_room": "the gateway chooses nodes and pages by itself",
    "chat_template": _TEMPLATE,
    "documents": "put the documents into the messages",
    "function_call": "use tools and tool_choice",
    "functions": "use tools and tool_choice",
    "guided_choice": _GUIDED,
    "guided_decoding_backend": _GUIDED,
    "guided_grammar": _GUIDED,
    "guided_json": _GUIDED,
    "guided_regex": _GUIDED,
    "guided_whitespace_pattern": _GUIDED,
    "kv_transfer_params": "the gateway chooses nodes and pages by itself",
    "logits_processors": "use logit_bias",
    "lora_path": "this deployment serves one model without adapters",
    "lora_request": "this deployment serves one model without adapters",
    "mm_processor_kwargs": _TEXT_ONLY,
    "prompt_embeds": "send the prompt as text or as token ids",
    "prompt_logprobs": "use /v1/completions with echo and logprobs",
    "structural_tag": _GUIDED,
    "structured_outputs": _GUIDED,
    "suffix": "the model completes at the end alone: put all text into the prompt",
    "truncate_prompt_tokens": "shorten the prompt yourself: nothing is cut silently",
    "use_beam_search": "use n, or temperature 0",
    "vllm_xargs": "leave it out",
    "web_search_options": "this server searches nothing: give the model tools of your own",
}
IGNORED = (
    "length_penalty",
    "metadata",
    "prediction",
    "prompt_cache_key",
    "reasoning_effort",
    "rid",
    "safety_identifier",
    "service_tier",
    "session_id",
    "spaces_between_special_tokens",
    "store",
    "user",
    "verbosity",
)
SILENTLY_IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier"})


class Unsupported(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of both tables."""

    allowed_token_ids: Any = None
    audio: Any = None
    bad_words: Any = None
    bootstrap_host: Any = None
    bootstrap_room: Any = None
    chat_template: Any = None
    documents: Any = None
    function_call: Any = None
    functions: Any = None
    guided_choice: Any = None
    guided_decoding_backend: Any = None
    guided_grammar: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_whitespace_pattern: Any = None
    kv_transfer_params: Any = None
    length_penalty: Any = None
    logits_processors: Any = None
    lora_path: Any = None
    lora_request: Any = None
    metadata: Any = None
    mm_processor_kwargs: Any = None
    modalities: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_embeds: Any = None
    prompt_logprobs: Any = None
    reasoning_effort: Any = None
    rid: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    session_id: Any = None
    spaces_between_special_tokens: Any = None
    store: Any = None
    structural_tag: Any = None
    structured_outputs: Any = None
    suffix: Any = None
    truncate_prompt_tokens: Any = None
    use_beam_search: Any = None
    user: Any = None
    verbosity: Any = None
    vllm_xargs: Any = None
    web_search_options: Any = None


def refuse_unsupported(request: Unsupported) -> None:
    """Raises ApiError for the first field that would have changed the answer.

    Values that turn a field off (null, false, 0, empty) are no request for it.
    """
    for name, advice in REFUSED.items():
        value = getattr(request, name)
        if value is not None and not _is_off(value):
            raise ApiError(400, f"{name} is not supported: {advice}", param=name)
    if request.modalities not in (None, [], ["text"]):
        raise ApiError(400, f"modalities other than text: {_TEXT_ONLY}", param="modalities")


def _is_off(value: object) -> bool:
    return value in (None, False, 0, "", [])


class IgnoredFields:
    """Logs each ignored field once per process; the common ones never."""

    def __init__(self) -> None:
        self._known = set(SILENTLY_IGNORED)

    def note(self, request: Unsupported) -> None:
        """A request came in."""
        for name in IGNORED:
            value = getattr(request, name)
            if value is not None and name not in self._known and not _is_off(value):
                self._known.add(name)
                logger.warning("callers send %s, which has no effect here (logged once)", name)
