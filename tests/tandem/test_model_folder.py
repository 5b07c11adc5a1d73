"""Model folders: both config.json styles of five families, defaults, fingerprints, errors."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tandem import model_folder
from tandem.model_folder import (
    ModelConfig,
    RopeScaling,
    load_generation_defaults,
    load_model_config,
    require_tokenizer,
    resolve_model,
    safetensors_files,
    tokenizer_fingerprint,
    weights_fingerprint,
)

SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}


def write(folder: Path, architecture: str, name: str = "config.json", **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    content = {"architectures": [architecture], **SIZES, **fields}
    (folder / name).write_text(json.dumps(content))
    return folder


def parse(folder: Path, architecture: str, **fields: Any) -> ModelConfig:
    return load_model_config(write(folder, architecture, **fields))


def test_llama_2_style(tmp_path: Path) -> None:
    config = parse(tmp_path, "LlamaForCausalLM", rope_theta=10000.0, torch_dtype="float16")
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (3, 8, 2)
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (64, 96, 8)
    assert (config.vocab_size, config.max_position_embeddings) == (128, 256)
    assert (config.rms_norm_eps, config.rope_theta, config.dtype) == (1e-5, 10000.0, "float16")
    assert config.rope_scaling.kind == "default"
    assert config.sliding_windows == (None, None, None)
    flags = (config.qkv_bias, config.output_bias, config.mlp_bias, config.qk_norm)
    assert flags == (False, False, False, False)
    assert not config.tie_word_embeddings


@pytest.mark.parametrize("style", ["rope_scaling", "rope_parameters"])
def test_llama_3_rope_in_both_styles(tmp_path: Path, style: str) -> None:
    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    if style == "rope_scaling":
        config = parse(tmp_path, "LlamaForCausalLM", rope_scaling=rope, rope_theta=500000.0)
    else:
        fields = {"rope_parameters": {**rope, "rope_theta": 500000.0}}
        config = parse(tmp_path, "LlamaForCausalLM", **fields)
    assert config.rope_theta == 500000.0
    expected = RopeScaling("llama3", 8.0, 64, low_freq_factor=1.0, high_freq_factor=4.0)
    assert config.rope_scaling == expected


def test_linear_and_yarn_rope(tmp_path: Path) -> None:
    linear = parse(tmp_path, "LlamaForCausalLM", rope_scaling={"type": "linear", "factor": 2})
    assert (linear.rope_scaling.kind, linear.rope_scaling.factor) == ("linear", 2.0)
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    yarn = parse(tmp_path, "Qwen2ForCausalLM", rope_scaling=rope).rope_scaling
    assert (yarn.beta_fast, yarn.beta_slow, yarn.truncate) == (32.0, 1.0, True)
    assert yarn.attention_factor == pytest.approx(0.1 * math.log(4.0) + 1.0)
    scaled = {**rope, "mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 16.0}
    yarn = parse(tmp_path, "Qwen2ForCausalLM", rope_scaling=scaled).rope_scaling
    ratio = (0.1 * math.log(4.0) + 1.0) / (0.05 * math.log(4.0) + 1.0)
    assert yarn.beta_fast == 16.0
    assert yarn.attention_factor == pytest.approx(ratio)


def test_biases_norms_and_windows_per_family(tmp_path: Path) -> None:
    llama = parse(tmp_path, "LlamaForCausalLM", attention_bias=True, mlp_bias=True, head_dim=16)
    assert (llama.qkv_bias, llama.output_bias, llama.mlp_bias) == (True, True, True)
    assert llama.head_dim == 16
    mistral = parse(tmp_path, "MistralForCausalLM", sliding_window=32)
    assert mistral.sliding_windows == (32, 32, 32)
    assert parse(tmp_path, "MistralForCausalLM", sliding_window=None).sliding_windows[0] is None
    qwen2 = parse(tmp_path, "Qwen2ForCausalLM", tie_word_embeddings=True, sliding_window=32)
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.tie_word_embeddings) == (True, False, True)
    assert qwen2.sliding_windows == (None, None, None)
    qwen3 = parse(tmp_path, "Qwen3ForCausalLM", attention_bias=True, dtype="bfloat16")
    assert (qwen3.qk_norm, qwen3.head_dim, qwen3.output_bias) == (True, 128, True)
    assert qwen3.dtype == "bfloat16"


def test_qwen_windows_by_count_and_by_list(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "use_sliding_window": True,
        "sliding_window": 16,
        "max_window_layers": 1,
    }
    assert parse(tmp_path, "Qwen2ForCausalLM", **fields).sliding_windows == (None, 16, 16)
    fields["layer_types"] = ["sliding_attention", "full_attention", "full_attention"]
    assert parse(tmp_path, "Qwen2ForCausalLM", **fields).sliding_windows == (16, None, None)


@pytest.mark.parametrize(
    ("architecture", "fields", "parts"),
    [
        ("GPT2LMHeadModel", {}, ["GPT2LMHeadModel", "LlamaForCausalLM", "Qwen3ForCausalLM"]),
        ("LlamaForCausalLM", {"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "longrope"}}, ["longrope", "llama3"]),
        ("LlamaForCausalLM", {"rope_scaling": {"rope_type": "linear"}}, ["linear", "factor"]),
        ("LlamaForCausalLM", {"hidden_size": "wide"}, ["hidden_size", "config.json"]),
        ("LlamaForCausalLM", {"num_key_value_heads": 3}, ["8 attention heads", "3 KV heads"]),
        ("LlamaForCausalLM", {"num_attention_heads": 0}, ["num_attention_heads", "at least 1"]),
        ("LlamaForCausalLM", {"torch_dtype": "int8"}, ["dtype", "int8", "bfloat16"]),
        ("LlamaForCausalLM", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ("LlamaForCausalLM", {"quantization_config": {"quant_method": "awq"}}, ["awq"]),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention"]}, ["layer_types", "3 layers"]),
        ("Qwen3ForCausalLM", {"layer_types": ["mamba"] * 3}, ["mamba", "sliding_attention"]),
        ("Qwen3ForCausalLM", {"layer_types": ["sliding_attention"] * 3}, ["sliding_window"]),
    ],
)
def test_what_is_not_supported_is_named(
    tmp_path: Path, architecture: str, fields: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        parse(tmp_path, architecture, **fields)
    for part in [*parts, str(tmp_path)]:
        assert part in str(caught.value)


def test_missing_folder_file_and_field(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model folder"):
        load_model_config(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(ValueError, match="num_hidden_layers"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="Fetch the file again"):
        load_model_config(tmp_path)


def test_generation_defaults(tmp_path: Path) -> None:
    write(tmp_path, "LlamaForCausalLM", eos_token_id=2)
    assert load_generation_defaults(tmp_path).eos_token_ids == (2,)
    generation = {"eos_token_id": [5, 6], "do_sample": True, "temperature": 0.6, "top_k": 20}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    defaults = load_generation_defaults(tmp_path)
    assert defaults.eos_token_ids == (5, 6)
    assert (defaults.temperature, defaults.top_k, defaults.top_p) == (0.6, 20, None)
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6}')
    defaults = load_generation_defaults(tmp_path)
    assert (defaults.temperature, defaults.eos_token_ids) == (0.0, (2,))
    (tmp_path / "generation_config.json").write_text('{"top_p": "most"}')
    with pytest.raises(ValueError, match="top_p"):
        load_generation_defaults(tmp_path)


def test_tokenizer_is_required_and_fingerprinted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no tokenizer"):
        require_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    require_tokenizer(tmp_path)
    first = tokenizer_fingerprint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert tokenizer_fingerprint(tmp_path) == first
    (tmp_path / "tokenizer.json").write_text("{ }")
    assert tokenizer_fingerprint(tmp_path) != first


def test_weight_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        safetensors_files(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "two.safetensors", "b": "one.safetensors"}}')
    (tmp_path / "two.safetensors").touch()
    with pytest.raises(ValueError, match=r"lacks the shard one\.safetensors"):
        safetensors_files(tmp_path)
    (tmp_path / "one.safetensors").touch()
    names = [path.name for path in safetensors_files(tmp_path)]
    assert names == ["one.safetensors", "two.safetensors"]
    index.write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    with pytest.raises(ValueError, match="not a file beside it"):
        safetensors_files(tmp_path)


def test_weights_fingerprint_sees_every_byte_of_a_small_model(tmp_path: Path) -> None:
    write(tmp_path, "LlamaForCausalLM")
    weights = np.arange(1000, dtype=np.float32)
    save_file({"w": weights}, tmp_path / "model.safetensors")
    first = weights_fingerprint(tmp_path)
    assert len(bytes.fromhex(first)) == 16
    assert weights_fingerprint(tmp_path) == first
    weights[777] += 1
    save_file({"w": weights}, tmp_path / "model.safetensors")
    second = weights_fingerprint(tmp_path)
    write(tmp_path, "LlamaForCausalLM", rope_theta=5.0)
    assert len({first, second, weights_fingerprint(tmp_path)}) == 3


def test_weights_fingerprint_samples_a_large_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_folder, "FULL_HASH_BYTES", 1000)
    monkeypatch.setattr(model_folder, "HASH_SAMPLE_BYTES", 16)
    write(tmp_path, "LlamaForCausalLM")
    seen = set()
    for changed in (None, 0, -1, 50_000):
        weights = np.zeros(100_000, dtype=np.float32)
        if changed is not None:
            weights[changed] = 1
        if changed == 50_000:  # one changed number may fall between samples, a fine-tune cannot
            weights += 1
        save_file({"w": weights}, tmp_path / "model.safetensors")
        seen.add(weights_fingerprint(tmp_path))
    assert len(seen) == 4
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 2000)
    with pytest.raises(ValueError, match="damaged"):
        weights_fingerprint(tmp_path)


def test_resolve_model(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path
    with pytest.raises(ValueError, match="no model folder"):
        resolve_model(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no model folder"):
        resolve_model("./nowhere")
    with pytest.raises(ValueError, match="nobody/no-such-model is neither a folder here nor"):
        resolve_model("nobody/no-such-model", download=False)
    with pytest.raises(ValueError, match="neither a folder here nor"):
        resolve_model("bad name?", download=False)


def test_reading_a_folder_loads_no_torch() -> None:
    code = "import sys, tandem.model_folder; print({'torch', 'transformers'} & set(sys.modules))"
    root = Path(model_folder.__file__).parent.parent
    run = [sys.executable, "-c", code]
    result = subprocess.run(run, cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
