"""Random-weight Llama checkpoints of any size, for benchmarks where only the shapes matter."""

import dataclasses
import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from loadgen.vocabulary import write_tokenizer
from tandem.model_config import ModelConfig, parse_model_config

Dtype = Literal["float32", "bfloat16"]
ITEM_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2}
CODES: dict[Dtype, str] = {"float32": "F32", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama decoder with an untied output layer."""

    hidden_size: int = 640
    num_layers: int = 8
    num_heads: int = 10
    num_kv_heads: int = 5
    intermediate_size: int = 1792
    vocab_size: int = 4096
    max_position_embeddings: int = 2048

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError(f"every size must be at least 1: {self}")
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"hidden size {self.hidden_size} must be a multiple of {self.num_heads} heads, and "
                f"these of {self.num_kv_heads} KV heads"
            )
        if self.hidden_size // self.num_heads % 2:
            raise ValueError(f"{self.hidden_size // self.num_heads} values per head: RoPE takes 2")

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the checkpoint, by its Hugging Face name."""
        hidden, inner = self.hidden_size, self.intermediate_size
        kv = self.num_kv_heads * (hidden // self.num_heads)
        sizes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, hidden),
            "model.norm.weight": (hidden,),
            "lm_head.weight": (self.vocab_size, hidden),
        }
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}."
            sizes |= {
                prefix + "input_layernorm.weight": (hidden,),
                prefix + "post_attention_layernorm.weight": (hidden,),
                prefix + "self_attn.q_proj.weight": (hidden, hidden),
                prefix + "self_attn.k_proj.weight": (kv, hidden),
                prefix + "self_attn.v_proj.weight": (kv, hidden),
                prefix + "self_attn.o_proj.weight": (hidden, hidden),
                prefix + "mlp.gate_proj.weight": (inner, hidden),
                prefix + "mlp.up_proj.weight": (inner, hidden),
                prefix + "mlp.down_proj.weight": (hidden, inner),
            }
        return sizes

    @property
    def num_parameters(self) -> int:
        """Of all tensors."""
        return sum(math.prod(size) for size in self.weight_shapes().values())


# The first two are those of `scripts/bench cpu_peers`; the others have the shapes of Llama 3.
PRESETS: dict[str, Shape] = {
    "35m": Shape(512, 8, 8, 4, 1408, 8192),
    "300m": Shape(1024, 20, 16, 8, 2816, 32_000),
    "1b": Shape(2048, 16, 32, 8, 8192, 128_256, 8192),
    "8b": Shape(4096, 32, 32, 8, 14_336, 128_256, 8192),
}


def model_config(shape: Shape, dtype: Dtype = "float32") -> ModelConfig:
    """What a node reads of such a checkpoint."""
    return parse_model_config(json.dumps(_config(shape, dtype)).encode())


def write_checkpoint(
    folder: Path,
    shape: Shape,
    tokenizer_folder: Path,
    *,
    seed: int = 0,
    dtype: Dtype = "float32",
    on_tensor: Callable[[int], object] = lambda num_parameters: None,
) -> None:
    """Write a Hugging Face folder with another model's tokenizer, grown to the vocabulary.

    The same seed draws the same float32 weights, rounded to `dtype`. Memory holds one tensor at a
    time; `on_tensor` is told the number of parameters of each as it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_config(shape, dtype), indent=1))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    write_tokenizer(
        tokenizer_folder, folder, shape.vocab_size, max_length=shape.max_position_embeddings
    )
    rng = np.random.default_rng(seed)
    sizes = shape.weight_shapes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(_header(sizes, dtype))
        for size in sizes.values():
            values = (
                np.ones(size, np.float32)
                if len(size) == 1
                else rng.standard_normal(size, np.float32) * np.float32(size[1] ** -0.5)
            )
            file.write(values.data if dtype == "float32" else as_bfloat16(values).data)
            on_tensor(values.size)


def _header(sizes: dict[str, tuple[int, ...]], dtype: Dtype) -> bytes:
    """Of a safetensors file: its length in 8 bytes, then JSON padded to a multiple of 8.

    By hand because the library's writer wants all tensors at once, and its numpy one no bfloat16.
    """
    document: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, size in sizes.items():
        end = offset + math.prod(size) * ITEM_BYTES[dtype]
        document[name] = {"dtype": CODES[dtype], "shape": size, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def as_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of finite float32 values rounded to bfloat16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _config(shape: Shape, dtype: Dtype) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
