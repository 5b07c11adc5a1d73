"""Loading weights: files of transformers' own models, shards, progress, and every clear error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from engine.weights import expected_shapes, load_weights
from tandem.model_folder import load_model_config

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
CPU = torch.device("cpu")

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "llama_tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, head_dim=16)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
}


def load(
    folder: Path, dtype: torch.dtype = torch.float32, steps: list[tuple[int, int]] | None = None
) -> dict[str, torch.Tensor]:
    def note(bytes_done: int, bytes_total: int) -> None:
        if steps is not None:
            steps.append((bytes_done, bytes_total))

    return load_weights(folder, load_model_config(folder), dtype, CPU, note)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    MODELS["llama"]().save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Rewrite model.safetensors with tensors replaced, added or (None) removed."""
    weights = {
        name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    for name, tensor in tensors.items():
        weights.pop(name, None)
        if tensor is not None:
            weights[name] = tensor
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize("family", sorted(MODELS))
@pytest.mark.parametrize("shard_size", ["1GB", "10KB"])
def test_every_family_loads_what_transformers_wrote(
    tmp_path: Path, family: str, shard_size: str
) -> None:
    torch.manual_seed(0)
    model = MODELS[family]()
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "10KB")
    weights = load(tmp_path)
    theirs = model.state_dict()
    assert weights.keys() == theirs.keys()
    assert all(torch.equal(weights[name], theirs[name]) for name in theirs)


def test_tied_embeddings_are_one_tensor(tmp_path: Path) -> None:
    MODELS["llama_tied"]().save_pretrained(tmp_path)
    change(tmp_path, **{"lm_head.weight": torch.zeros(64, 32)})  # files may hold it twice
    weights = load(tmp_path)
    assert weights["lm_head.weight"] is weights["model.embed_tokens.weight"]
    assert weights["lm_head.weight"].any()


def test_converts_and_reports_progress_in_stored_bytes(folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    weights = load(folder, torch.float64, steps)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float64}
    total = sum(tensor.numel() * 4 for tensor in weights.values())
    assert steps[-1] == (total, total)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert len(steps) == len(expected_shapes(load_model_config(folder)))


def test_known_extras_are_ignored(folder: Path) -> None:
    before = load(folder)
    change(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert load(folder).keys() == before.keys()


@pytest.mark.parametrize(
    ("tensors", "parts"),
    [
        ({"model.layers.1.mlp.up_proj.weight": None}, ["lack model.layers.1.mlp.up_proj.weight"]),
        ({"lm_head.weight": None}, ["lack lm_head.weight"]),
        ({"model.norm.weight": torch.ones(31)}, ["model.norm.weight", "[31]", "[32]"]),
        ({"model.norm.weight": torch.ones(32, dtype=torch.int8)}, ["I8", "BF16"]),
        ({"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}, ["q_norm", "no place"]),
    ],
)
def test_wrong_tensors_are_named(
    folder: Path, tensors: dict[str, torch.Tensor | None], parts: list[str]
) -> None:
    change(folder, **tensors)
    with pytest.raises(ValueError) as caught:
        load(folder)
    for part in [*parts, str(folder)]:
        assert part in str(caught.value)


def test_many_missing_tensors_are_counted(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"lack model\.layers\.2\..* and 11 more"):
        load(folder)


def test_missing_shard_and_damaged_file(tmp_path: Path, folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ValueError, match="damaged"):
        load(folder)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"lacks the shard model-00001-of-00002\.safetensors"):
        load(folder)
