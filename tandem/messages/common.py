"""Values that several links share: identities, errors, SLA targets, timelines."""

import sys
from typing import Annotated, Literal

import msgspec

Name = Annotated[str, msgspec.Meta(max_length=128, pattern=r"^[A-Za-z0-9._:/@+ -]*\Z")]
NAMES_ADVICE = (
    "--name and --served-model-name may have up to 128 letters, digits, spaces and . _ : / @ + -"
)
Address = Annotated[str, msgspec.Meta(max_length=256)]
ShortText = Annotated[str, msgspec.Meta(max_length=2000)]
RequestId = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
PeerId = Annotated[bytes, msgspec.Meta(min_length=1, max_length=255)]  # a routing identity
CurveKey = Annotated[str, msgspec.Meta(min_length=40, max_length=40)]  # Z85 of a public key
Counter = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Attempt = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Finite = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]  # no NaN
Duration = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Seed = Annotated[int, msgspec.Meta(ge=0)]  # MessagePack itself ends at 2**64 - 1

ErrorCode = Literal[
    "invalid_request",
    "context_too_long",
    "unknown_model",
    "unknown_sla_class",
    "no_prefill_node",
    "no_decode_node",
    "not_serving",
    "too_few_pages",
    "incompatible_nodes",
    "overloaded",
    "deadline_exceeded",
    "rate_limited",
    "cancelled",
    "node_failed",
    "transfer_failed",
    "suspected_poison",
    "unavailable",
    "internal",
]
FinishReason = Literal["stop", "length", "cancelled", "failed"]


class Wire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of values inside messages; maps on the wire, for any MessagePack speaker."""


class Message(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Base of messages: the map's `type` key holds the class name."""


class SlaTargets(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request was promised; durations, so they mean the same on every host."""

    sla_class: Name
    ttft_ms: Duration
    tpot_ms: Duration


class LengthPrediction(
    Wire, frozen=True, kw_only=True, forbid_unknown_fields=True, array_like=True
):
    """How long an answer may become, in tokens; a hint that changes speed, never tokens.

    `score` only orders: lower is shorter. Half of such answers are at most `q50` long, nine of ten
    at most `q90`.
    """

    score: Finite
    q50: Duration
    q90: Duration


class NodeCosts(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a node's steps and transfers take, fitted from what they took; see `scheduling.costs`.

    A step of prefill chunks and decode rows takes `step_s`, and for each prefill token
    `prefill_token_s`, for each pair of a prefill token and a token of its context
    `prefill_context_s`, for each decode row `decode_row_s`, for each token of their contexts
    `decode_context_s`. `error` is the median of |predicted - measured| / measured over the last
    steps, `num_steps` how many steps it rests on. A transfer takes `transfer_s` and its bytes over
    `transfer_bytes_per_s` (0: not known).
    """

    step_s: Duration
    prefill_token_s: Duration
    prefill_context_s: Duration
    decode_row_s: Duration
    decode_context_s: Duration
    error: Duration = 0.0
    num_steps: Counter = 0
    transfer_s: Duration = 0.0
    transfer_bytes_per_s: Annotated[float, msgspec.Meta(ge=0, le=1e15)] = 0.0


class ModelIdentity(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What two processes must share before tokens or pages pass between them.

    `num_labels` of its classification head; 0: it has none, and generates.
    """

    served_name: Name
    weights_fingerprint: Name
    tokenizer_fingerprint: Name
    dtype: Name
    max_model_len: Counter
    vocab_size: Counter
    num_labels: Counter = 0


class NodeRef(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node as the coordinator admitted it; a higher epoch of the same name replaces it."""

    node_id: Name
    incarnation: Counter
    epoch: Counter
    control_address: Address


class TokenLogprobs(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True, array_like=True):
    """Log-probability of a token and of the best alternatives, from the raw logits."""

    logprob: Finite
    top: tuple[tuple[TokenId, Finite], ...] = ()


class PrefillReport(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What prefill did, in seconds after the node received its command."""

    node_id: Name
    started_after_s: Duration
    first_token_after_s: Duration
    num_cached_tokens: Counter


class DecodeReport(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decode did, in seconds after the node received its command."""

    node_id: Name
    transfer_end_after_s: Duration
    started_after_s: Duration
    ended_after_s: Duration
    transfer_bytes: Counter
    num_cached_tokens: Counter = 0


class Timeline(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request's life on the gateway's clock, in seconds after it was received.

    A stage that never happened is None. Dashboards, metrics and benchmarks read this record.
    """

    received_unix_s: Finite
    placed_s: Finite | None = None
    prefill_start_s: Finite | None = None
    first_token_s: Finite | None = None
    transfer_end_s: Finite | None = None
    decode_start_s: Finite | None = None
    finished_s: Finite | None = None
    prefill_node: Name | None = None
    decode_node: Name | None = None
    transfer_bytes: Counter = 0
    num_attempts: Counter = 1


class Usage(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens of a request; `num_cached_tokens` of the prompt were not recomputed."""

    num_prompt_tokens: Counter
    num_output_tokens: Counter
    num_cached_tokens: Counter = 0
