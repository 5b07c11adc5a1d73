"""The shape of a decoder, parsed from a Hugging Face config.json; no torch.

Reads what transformers 4 wrote (`rope_scaling`, `rope_theta`, `torch_dtype`) and what 5 writes
(`rope_parameters`, `layer_types`, `dtype`), with transformers' own defaults for what a file leaves
out. What is not supported is refused by name with the list of what is, never guessed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import msgspec

T = TypeVar("T")
Architecture = Literal[
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"
]
RopeKind = Literal["default", "linear", "llama3", "yarn"]
ModelDtype = Literal["float64", "float32", "bfloat16", "float16"]

ARCHITECTURES: dict[str, Architecture] = {name: name for name in get_args(Architecture)}
GENERATES, CLASSIFIES = "ForCausalLM", "ForSequenceClassification"
CLASSIFIERS = {name.replace(GENERATES, CLASSIFIES): name for name in ARCHITECTURES.values()}
# Parts of names of models whose tokens see those after them.
ENCODERS = ("bert", "electra", "mpnet", "xlnet", "t5encoder", "longformer", "bigbird")
ROPE_KINDS: dict[str, RopeKind] = {name: name for name in get_args(RopeKind)}
DTYPES: dict[str, ModelDtype] = {name: name for name in get_args(ModelDtype)}
LAYER_IS_SLIDING = {"full_attention": False, "sliding_attention": True}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched over contexts longer than the model first learnt.

    default: not at all. linear: all frequencies divided by `factor`. llama3: those of wavelengths
    above original / low_freq_factor divided, those below original / high_freq_factor kept, between
    them interpolated. yarn: a ramp over the dimensions between the ones that turn `beta_fast` and
    `beta_slow` times in the original context (rounded outwards where `truncate`), and cosines and
    sines multiplied by `attention_factor`.
    """

    kind: RopeKind
    factor: float
    original_max_position_embeddings: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One decoder, whatever its family.

    qkv_bias, output_bias: biases of the q, k, v and of the o projection. mlp_bias: biases of gate,
    up and down. qk_norm: RMSNorm over each head's q and k before rotation. sliding_windows[layer]:
    a query sees that many latest positions, its own included; None sees all. num_labels: of a
    classification head, which is there in place of the one that gives logits; 0 without one.
    """

    architecture: Architecture
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool
    sliding_windows: tuple[int | None, ...]
    dtype: ModelDtype
    hidden_act: Literal["silu"] = "silu"
    num_labels: int = 0


class _RopeFields(msgspec.Struct, frozen=True):
    """`rope_scaling` or `rope_parameters` as files have it."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    partial_rotary_factor: float | None = None


class _ArchitectureField(msgspec.Struct, frozen=True):
    architectures: list[str] | None = None


class _ConfigFile(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of config.json that matter here, as files have them."""

    architectures: list[str] | None = None
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: _RopeFields | None = None
    rope_parameters: _RopeFields | None = None
    partial_rotary_factor: float | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    # transformers takes a Mistral file that says nothing to mean 4096, and null to mean none.
    sliding_window: int | None = 4096
    use_sliding_window: bool = False
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    hidden_act: str = "silu"
    quantization_config: dict[str, Any] | None = None
    num_labels: int | None = None
    id2label: dict[str, Any] | None = None


def parse_model_config(content: bytes) -> ModelConfig:
    """The `ModelConfig` of the bytes of a config.json.

    ValueError: a field missing or of the wrong type; an architecture, activation, RoPE kind, layer
    type, dtype or quantisation that is not supported; sizes that do not fit together.
    """
    architecture = _architecture(content)
    try:
        file = msgspec.json.decode(content, type=_ConfigFile)
    except msgspec.DecodeError as error:
        raise ValueError(
            f"config.json cannot be used: {error}. Correct or fetch the file"
        ) from error
    is_qwen2 = architecture == "Qwen2ForCausalLM"
    attention_bias = file.attention_bias and architecture in (
        "LlamaForCausalLM",
        "Qwen3ForCausalLM",
    )
    config = ModelConfig(
        architecture=architecture,
        num_layers=file.num_hidden_layers,
        hidden_size=file.hidden_size,
        intermediate_size=file.intermediate_size,
        num_heads=file.num_attention_heads,
        num_kv_heads=file.num_key_value_heads or file.num_attention_heads,
        head_dim=_head_dim(file, architecture),
        vocab_size=file.vocab_size,
        max_position_embeddings=file.max_position_embeddings,
        rms_norm_eps=file.rms_norm_eps,
        rope_theta=_rope_theta(file),
        rope_scaling=_rope_scaling(file),
        qkv_bias=is_qwen2 or attention_bias,
        output_bias=attention_bias,
        mlp_bias=file.mlp_bias and architecture == "LlamaForCausalLM",
        qk_norm=architecture == "Qwen3ForCausalLM",
        tie_word_embeddings=file.tie_word_embeddings,
        sliding_windows=_sliding_windows(file, architecture),
        dtype=_one_of("dtype", file.dtype or file.torch_dtype or "float32", DTYPES),
        num_labels=_num_labels(file),
    )
    _check(file, config)
    return config


def _architecture(content: bytes) -> Architecture:
    """Read first and alone: another architecture need not have the fields of ours."""

    try:
        names = msgspec.json.decode(content, type=_ArchitectureField).architectures or []
    except msgspec.DecodeError as error:
        raise ValueError(f"config.json cannot be read: {error}. Fetch the file again") from error
    name = names[0] if names else ""
    if any(part in name.lower() for part in ENCODERS):
        raise ValueError(
            f"config.json has the architecture {name!r}, an encoder, and only decoders are served: "
            "for embeddings use a decoder that was trained for them, for ranking one of "
            f"{', '.join(CLASSIFIERS)}"
        )
    return _one_of("architecture", name, ARCHITECTURES | CLASSIFIERS)


def _num_labels(file: _ConfigFile) -> int:
    """Files name the labels, or say nothing of the two that are transformers' default."""
    if not file.architectures or file.architectures[0] not in CLASSIFIERS:
        return 0
    return len(file.id2label or ()) or file.num_labels or 2


def _one_of(what: str, value: str, supported: Mapping[str, T]) -> T:
    if value in supported:
        return supported[value]
    raise ValueError(
        f"config.json has the {what} {value!r}, which is not supported: use a model with one of "
        f"{', '.join(supported)}"
    )


def _head_dim(file: _ConfigFile, architecture: Architecture) -> int:
    if file.head_dim is not None:
        return file.head_dim
    if architecture == "Qwen3ForCausalLM":
        return 128  # transformers' default for this family, whatever the hidden size
    return file.hidden_size // max(file.num_attention_heads, 1)


def _rope_fields(file: _ConfigFile) -> _RopeFields:
    return file.rope_scaling or file.rope_parameters or _RopeFields()


def _rope_theta(file: _ConfigFile) -> float:
    theta = _rope_fields(file).rope_theta
    return file.rope_theta if theta is None else theta


def _rope_scaling(file: _ConfigFile) -> RopeScaling:
    rope = _rope_fields(file)
    kind: RopeKind = _one_of("RoPE type", rope.rope_type or rope.type or "default", ROPE_KINDS)
    if (rope.partial_rotary_factor or file.partial_rotary_factor or 1.0) != 1.0:
        raise ValueError(
            "config.json has a partial_rotary_factor other than 1, which is not supported: use a "
            "model that rotates whole heads"
        )
    original = rope.original_max_position_embeddings or file.max_position_embeddings
    if kind == "default":
        return RopeScaling(kind=kind, factor=1.0, original_max_position_embeddings=original)
    if kind == "yarn" and rope.factor is None:
        factor = file.max_position_embeddings / original
    else:
        factor = _needed(rope.factor, kind, "factor")
    if kind == "linear":
        return RopeScaling(kind=kind, factor=factor, original_max_position_embeddings=original)
    if kind == "llama3":
        return RopeScaling(
            kind=kind,
            factor=factor,
            original_max_position_embeddings=original,
            low_freq_factor=_needed(rope.low_freq_factor, kind, "low_freq_factor"),
            high_freq_factor=_needed(rope.high_freq_factor, kind, "high_freq_factor"),
        )
    return RopeScaling(
        kind=kind,
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=rope.beta_fast or 32.0,
        beta_slow=rope.beta_slow or 1.0,
        truncate=rope.truncate,
        attention_factor=_yarn_attention_factor(rope, factor),
    )


def _needed(value: T | None, kind: str, field: str) -> T:
    if value is None:
        raise ValueError(
            f"config.json has RoPE of type {kind} without {field}: fetch the file again"
        )
    return value


def _yarn_attention_factor(rope: _RopeFields, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def _sliding_windows(file: _ConfigFile, architecture: Architecture) -> tuple[int | None, ...]:
    """Llama has none, Mistral one for all layers, Qwen one for the layers that its file lists."""
    num_layers, window = file.num_hidden_layers, file.sliding_window
    if architecture == "LlamaForCausalLM":
        return (None,) * num_layers
    if architecture == "MistralForCausalLM":
        return (window,) * num_layers
    if file.layer_types is None:
        first_windowed = file.max_window_layers if file.use_sliding_window else num_layers
        return tuple(window if layer >= first_windowed else None for layer in range(num_layers))
    if len(file.layer_types) != num_layers:
        raise ValueError(
            f"config.json lists {len(file.layer_types)} layer_types for {num_layers} layers: "
            "fetch the file again"
        )
    sliding = [_one_of("layer type", kind, LAYER_IS_SLIDING) for kind in file.layer_types]
    if any(sliding) and (window is None or not file.use_sliding_window):
        raise ValueError(
            "config.json lists sliding_attention layers but no window: set sliding_window and "
            "use_sliding_window"
        )
    return tuple(window if is_sliding else None for is_sliding in sliding)


def _check(file: _ConfigFile, config: ModelConfig) -> None:
    if file.hidden_act not in ("silu", "swish"):
        raise ValueError(
            f"config.json has the hidden_act {file.hidden_act!r}, which is not supported: use a "
            "model with silu"
        )
    if file.quantization_config is not None:
        method = file.quantization_config.get("quant_method", "unknown")
        raise ValueError(
            f"the weights are quantised ({method}), which is not supported: use the model's "
            "unquantised weights"
        )
    windows = [window for window in config.sliding_windows if window is not None]
    sizes = {
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "sliding_window": min(windows, default=1),
    }
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"config.json has {name} {size}, but it must be at least 1")
    if config.num_heads % config.num_kv_heads or config.head_dim % 2:
        raise ValueError(
            f"config.json has {config.num_heads} attention heads, {config.num_kv_heads} KV heads "
            f"and head_dim {config.head_dim}: the heads must be a multiple of the KV heads and "
            "head_dim even"
        )
