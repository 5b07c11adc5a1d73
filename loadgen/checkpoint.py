"""A random-weight Llama checkpoint of any size, for benchmarks where only the shapes matter."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


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


def write_checkpoint(folder: Path, shape: Shape, tokenizer_folder: Path, *, seed: int = 0) -> None:
    """Write a Hugging Face folder with float32 weights and another model's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=1))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    for name in TOKENIZER_FILES:
        shutil.copy(tokenizer_folder / name, folder / name)
    rng = np.random.default_rng(seed)
    weights = {
        name: np.ones(size, np.float32)
        if len(size) == 1
        else rng.standard_normal(size, np.float32) * np.float32(size[1] ** -0.5)
        for name, size in _shapes(shape).items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _config(shape: Shape) -> dict[str, object]:
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
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def _shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    hidden, inner = shape.hidden_size, shape.intermediate_size
    head = hidden // shape.num_heads
    sizes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocab_size, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (shape.vocab_size, hidden),
    }
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        sizes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (hidden, hidden),
            prefix + "self_attn.k_proj.weight": (shape.num_kv_heads * head, hidden),
            prefix + "self_attn.v_proj.weight": (shape.num_kv_heads * head, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
        }
    return sizes
