"""How a request wants its tokens drawn: the parameters, their limits, the model's defaults.

`SamplingParams` is both what a user gives and what travels to the nodes. Fields that a model's
generation_config.json may set are None until `with_model_defaults` has filled them (gateways do);
nodes read None as the neutral value. The order of operations is the sampler's contract
(`engine/sampler.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from tandem.messages.common import Finite, Int64

T = TypeVar("T", int, float)

MAX_LOGIT_BIAS_ENTRIES = 300
MAX_STOP_TOKEN_IDS = 64
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256
MAX_TOP_LOGPROBS = 20
MAX_SCHEMA_BYTES = 32 << 10  # a message has 64 KiB, and logit_bias and stop strings take up to 20
MAX_SEED = 2**64 - 1

NEUTRAL_TEMPERATURE = 1.0
NEUTRAL_TOP_K = 0
NEUTRAL_TOP_P = 1.0
NEUTRAL_MIN_P = 0.0
NEUTRAL_REPETITION_PENALTY = 1.0


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What a model's authors set in generation_config.json; None where they set nothing.

    `eos_token_ids` end a sequence (several are common: Llama 3 has end-of-text and end-of-turn).
    """

    eos_token_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Parameters of one request. `validate` checks ranges; the wire limits counts.

    temperature: 0 is greedy, None the model's default, else 1.
    top_k: keep the k most likely tokens, 0 is off. top_p: keep the smallest set of most likely
        tokens whose probability reaches top_p, 1 is off. min_p: drop tokens less likely than
        min_p times the most likely one, 0 is off.
    repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or
        output. presence_penalty, frequency_penalty: subtracted from the logits of tokens in the
        output, once or per occurrence.
    logit_bias: token id -> added to its logit.
    max_tokens: None is up to the context length. min_tokens: end-of-text and stop token ids are
        not drawn before. stop: strings at which the gateway cuts the text.
    logprobs: None is off, else the number of most likely alternatives listed with each token.
    seed: None draws one; the same seed, prompt and parameters give the same tokens.
    json_schema: the output is JSON text that keeps this JSON schema; None is off. It ends where
        the JSON does: not with ignore_eos or min_tokens. max_tokens and stop may cut it.
    """

    max_tokens: Int64 | None = None
    temperature: Finite | None = None
    top_k: Int64 | None = None
    top_p: Finite | None = None
    min_p: Finite | None = None
    repetition_penalty: Finite | None = None
    presence_penalty: Finite = 0.0
    frequency_penalty: Finite = 0.0
    logit_bias: Annotated[dict[Int64, Finite], Meta(max_length=MAX_LOGIT_BIAS_ENTRIES)] = {}
    stop_token_ids: Annotated[tuple[Int64, ...], Meta(max_length=MAX_STOP_TOKEN_IDS)] = ()
    stop: Annotated[
        tuple[Annotated[str, Meta(max_length=MAX_STOP_STRING_CHARS)], ...],
        Meta(max_length=MAX_STOP_STRINGS),
    ] = ()
    ignore_eos: bool = False
    min_tokens: Int64 = 0
    logprobs: Int64 | None = None
    seed: int | None = None
    json_schema: Annotated[str, Meta(max_length=MAX_SCHEMA_BYTES)] | None = None


def with_model_defaults(params: SamplingParams, defaults: GenerationDefaults) -> SamplingParams:
    """Fill what the user left unset: from the model's defaults, else with the neutral value.

    The result has no None in temperature, top_k, top_p, min_p and repetition_penalty.
    """
    return msgspec.structs.replace(
        params,
        temperature=_first(params.temperature, defaults.temperature, NEUTRAL_TEMPERATURE),
        top_k=_first(params.top_k, defaults.top_k, NEUTRAL_TOP_K),
        top_p=_first(params.top_p, defaults.top_p, NEUTRAL_TOP_P),
        min_p=_first(params.min_p, defaults.min_p, NEUTRAL_MIN_P),
        repetition_penalty=_first(
            params.repetition_penalty, defaults.repetition_penalty, NEUTRAL_REPETITION_PENALTY
        ),
    )


def _first(given: T | None, default: T | None, neutral: T) -> T:
    if given is not None:
        return given
    return neutral if default is None else default


def is_greedy(params: SamplingParams) -> bool:
    """Whether tokens are chosen without noise (temperature 0)."""
    return params.temperature == 0.0


def validate(params: SamplingParams, vocab_size: int, max_model_len: int) -> None:
    """Raise ValueError naming the first bad field, its value, what is allowed and what to do."""
    _check_numbers(params, max_model_len)
    if len(params.logit_bias) > MAX_LOGIT_BIAS_ENTRIES:
        raise _too_many("logit_bias", len(params.logit_bias), MAX_LOGIT_BIAS_ENTRIES)
    for token_id, bias in params.logit_bias.items():
        _check_token_id("logit_bias", token_id, vocab_size)
        _check_range(f"logit_bias[{token_id}]", bias, -100, 100, "use +-100 to force or ban")
    if len(params.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise _too_many("stop_token_ids", len(params.stop_token_ids), MAX_STOP_TOKEN_IDS)
    for token_id in params.stop_token_ids:
        _check_token_id("stop_token_ids", token_id, vocab_size)
    _check_stop_strings(params.stop)
    _check_schema(params)


def _check_schema(params: SamplingParams) -> None:
    """What needs no compiler: `tandem.json_schema` reads the schema itself."""
    if params.json_schema is None:
        return
    num_bytes = len(params.json_schema.encode(errors="surrogatepass"))
    if num_bytes > MAX_SCHEMA_BYTES:
        raise ValueError(
            f"json_schema has {num_bytes} bytes, but may have {MAX_SCHEMA_BYTES}: leave out "
            "descriptions, or name repeated parts once under $defs"
        )
    if params.ignore_eos or params.min_tokens:
        field = "ignore_eos" if params.ignore_eos else "min_tokens"
        raise ValueError(
            f"{field} is given with json_schema, and the answer ends where its JSON does: leave "
            f"{field} out, or ask for more by minItems or minLength in the schema"
        )


def _check_numbers(params: SamplingParams, max_model_len: int) -> None:
    if params.max_tokens is not None:
        advice = "lower it, or leave it out to use all the context that is left"
        _check_range("max_tokens", params.max_tokens, 1, max_model_len, advice, whole=True)
    if params.temperature is not None:
        advice = "use 0 for greedy decoding, 1 for the model's own distribution"
        _check_range("temperature", params.temperature, 0, 100, advice)
    if params.top_k is not None:
        _check_range("top_k", params.top_k, 0, 2**31 - 1, "use 0 to turn it off", whole=True)
    if params.top_p is not None:
        _check_range("top_p", params.top_p, 0, 1, "use 1 to turn it off", open_low=True)
    if params.min_p is not None:
        _check_range("min_p", params.min_p, 0, 1, "use 0 to turn it off")
    if params.repetition_penalty is not None:
        penalty = params.repetition_penalty
        _check_range("repetition_penalty", penalty, 0, 10, "use 1 to turn it off", open_low=True)
    _check_range("presence_penalty", params.presence_penalty, -2, 2, "use 0 to turn it off")
    _check_range("frequency_penalty", params.frequency_penalty, -2, 2, "use 0 to turn it off")
    if params.max_tokens is not None:
        advice = "it must not exceed max_tokens"
        _check_range("min_tokens", params.min_tokens, 0, params.max_tokens, advice, whole=True)
    advice = "it must not exceed the model's context"
    _check_range("min_tokens", params.min_tokens, 0, max_model_len, advice, whole=True)
    if params.logprobs is not None:
        advice = "leave it out to turn log-probabilities off"
        _check_range("logprobs", params.logprobs, 0, MAX_TOP_LOGPROBS, advice, whole=True)
    if params.seed is not None:
        _check_range("seed", params.seed, 0, MAX_SEED, "leave it out for a random one", whole=True)


def _check_range(
    field: str,
    value: float,
    low: float,
    high: float,
    advice: str,
    *,
    open_low: bool = False,
    whole: bool = False,
) -> None:
    """`whole` asks for an integer; `open_low` excludes `low`. NaN is in no range."""
    right_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if right_type and low <= value <= high and not (open_low and value == low):
        return
    kind = "a whole number" if whole else "a number"
    span = f"above {low} and at most {high}" if open_low else f"from {low} to {high}"
    raise ValueError(f"{field} is {value!r}, but must be {kind} {span}: {advice}")


def _check_token_id(field: str, token_id: int, vocab_size: int) -> None:
    advice = "the model has no other token ids"
    _check_range(f"a token id in {field}", token_id, 0, vocab_size - 1, advice, whole=True)


def _check_stop_strings(stop: Sequence[str]) -> None:
    if isinstance(stop, str):
        raise _not_a_tuple(stop)
    if len(stop) > MAX_STOP_STRINGS:
        raise _too_many("stop", len(stop), MAX_STOP_STRINGS)
    for text in stop:
        if not 1 <= len(text) <= MAX_STOP_STRING_CHARS:
            raise ValueError(
                f"a stop string has {len(text)} characters, but must have 1 to "
                f"{MAX_STOP_STRING_CHARS}: shorten it or leave it out"
            )


def _too_many(field: str, num_given: int, limit: int) -> ValueError:
    return ValueError(
        f"{field} has {num_given} entries, but at most {limit} are allowed: leave out the rest"
    )


def _not_a_tuple(stop: str) -> ValueError:
    return ValueError(f"stop is the string {stop!r}, but must be a tuple: write stop=({stop!r},)")
