"""Loads a decoder's weights from safetensors files, single or sharded, under their HF names.

Files are memory-mapped: a tensor that needs no conversion on the CPU stays a view of its file (so
nodes on one host share it, and the file must not be rewritten under a running node); others are
converted or moved one at a time, so the peak is one tensor above the result.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from tandem.model_config import ModelConfig
from tandem.model_folder import safetensors_files

Progress = Callable[[int, int], None]
"""Called with (bytes loaded, bytes in all) after every tensor; bytes as stored in the files."""

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
CLASSIFIER = "score.weight"
KNOWN_EXTRA_SUFFIX = ".rotary_emb.inv_freq"  # written by old transformers, derived from the config
FLOAT_DTYPES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}  # safetensors name: bytes per number
MAX_NAMES_LISTED = 5


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...

    def get_dtype(self) -> str: ...


class _OpenFile(Protocol):
    """What is used of safetensors' untyped file handle."""

    def keys(self) -> list[str]: ...

    def get_tensor(self, name: str) -> torch.Tensor: ...

    def get_slice(self, name: str) -> _Slice: ...


def load_weights(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
) -> dict[str, torch.Tensor]:
    """All weights of `config` as `dtype` on `device`, by Hugging Face name.

    With tied embeddings `lm_head.weight` is the embedding's tensor itself. ValueError: a shard or
    tensor is missing, a shape differs from the config's, a dtype is not a float, or the files hold
    tensors that the config has no place for.
    """
    expected = expected_shapes(config)
    weights: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        owners = _owners(stack, folder, config)
        _check_names(folder, set(owners), set(expected))
        num_bytes = {
            name: _checked_bytes(folder, owners[name], name, shape)
            for name, shape in expected.items()
        }
        bytes_total, bytes_done = sum(num_bytes.values()), 0
        for name in expected:
            weights[name] = owners[name].get_tensor(name).to(device=device, dtype=dtype)
            bytes_done += num_bytes[name]
            progress(bytes_done, bytes_total)
    if config.tie_word_embeddings:
        weights[LM_HEAD] = weights[EMBEDDING]
    return weights


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the files must hold; projections are [out, in]."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {prefix + name: shape for name, shape in _layer_shapes(config).items()}
    shapes["model.norm.weight"] = (hidden,)
    if config.num_labels:
        shapes[CLASSIFIER] = (config.num_labels, hidden)
    elif not config.tie_word_embeddings:
        shapes[LM_HEAD] = (config.vocab_size, hidden)
    return shapes


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    q_size, kv_size = config.num_heads * head_dim, config.num_kv_heads * head_dim
    projections = {
        "self_attn.q_proj": (q_size, hidden, config.qkv_bias),
        "self_attn.k_proj": (kv_size, hidden, config.qkv_bias),
        "self_attn.v_proj": (kv_size, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, q_size, config.output_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (hidden,)}
    for name, (num_outputs, num_inputs, has_bias) in projections.items():
        shapes[f"{name}.weight"] = (num_outputs, num_inputs)
        if has_bias:
            shapes[f"{name}.bias"] = (num_outputs,)
    if config.qk_norm:
        shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (head_dim,)
    shapes["post_attention_layernorm.weight"] = (hidden,)
    return shapes


def _owners(stack: ExitStack, folder: Path, config: ModelConfig) -> dict[str, _OpenFile]:
    """The open file that holds each tensor of the folder, those never needed left out."""
    owners: dict[str, _OpenFile] = {}
    for path in safetensors_files(folder):
        try:
            file: _OpenFile = stack.enter_context(safe_open(path, framework="pt"))
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}): fetch it again") from error
        owners |= dict.fromkeys(file.keys(), file)
    if config.tie_word_embeddings:
        owners.pop(LM_HEAD, None)
    return {name: file for name, file in owners.items() if not name.endswith(KNOWN_EXTRA_SUFFIX)}


def _check_names(folder: Path, present: set[str], expected: set[str]) -> None:
    if missing := sorted(expected - present):
        raise ValueError(
            f"the weights in {folder} lack {_listed(missing)}: fetch the model again, or correct "
            "its config.json"
        )
    if extra := sorted(present - expected):
        raise ValueError(
            f"the weights in {folder} hold {_listed(extra)}, which its config.json has no place "
            "for: the two do not belong together, or the model has parts that are not supported"
        )


def _checked_bytes(folder: Path, file: _OpenFile, name: str, shape: tuple[int, ...]) -> int:
    """Bytes that the tensor has in its file."""
    part = file.get_slice(name)
    found, dtype = tuple(part.get_shape()), part.get_dtype()
    if found != shape:
        raise ValueError(
            f"{name} in {folder} has the shape {list(found)}, but config.json asks for "
            f"{list(shape)}: weights and config.json do not belong together"
        )
    if dtype not in FLOAT_DTYPES:
        raise ValueError(
            f"{name} in {folder} has the dtype {dtype}, but must have one of "
            f"{', '.join(FLOAT_DTYPES)}: use the model's unquantised weights"
        )
    num_bytes = FLOAT_DTYPES[dtype]
    for size in shape:
        num_bytes *= size
    return num_bytes


def _listed(names: list[str]) -> str:
    rest = len(names) - MAX_NAMES_LISTED
    return ", ".join(names[:MAX_NAMES_LISTED]) + (f" and {rest} more" if rest > 0 else "")
