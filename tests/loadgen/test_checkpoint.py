"""Random-weight checkpoints: what is written is what other libraries read."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from loadgen.checkpoint import PRESETS, Shape, as_bfloat16, write_checkpoint
from loadgen.vocabulary import grow

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "models/demo"
SMALL = Shape(64, 2, 4, 2, 96, 4200, 256)


def test_both_dtypes_hold_the_same_weights(tmp_path: Path) -> None:
    told: list[int] = []
    write_checkpoint(tmp_path / "a", SMALL, DEMO, seed=5, on_tensor=told.append)
    write_checkpoint(tmp_path / "b", SMALL, DEMO, seed=5, dtype="bfloat16")
    full = load_file(tmp_path / "a/model.safetensors")
    half = load_file(tmp_path / "b/model.safetensors")
    assert {name: tuple(t.shape) for name, t in full.items()} == SMALL.weight_shapes()
    assert sum(told) == SMALL.num_parameters == sum(t.numel() for t in full.values())
    for name, tensor in full.items():
        assert torch.equal(tensor.to(torch.bfloat16), half[name])


def test_rounding_to_bfloat16_is_torchs() -> None:
    values = np.random.default_rng(0).standard_normal(4096, np.float32)
    values[:4] = [1.00390625, 1.01171875, -0.0, 3e38]  # two ties, one to each side
    ours = torch.from_numpy(as_bfloat16(values).view(np.int16)).view(torch.bfloat16)
    assert torch.equal(ours, torch.from_numpy(values).to(torch.bfloat16))


def test_the_tokenizer_grows_to_the_vocabulary(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SMALL, DEMO)
    grown, demo = (Tokenizer.from_file(str(f / "tokenizer.json")) for f in (tmp_path, DEMO))
    assert grown.get_vocab_size() == SMALL.vocab_size > demo.get_vocab_size()
    new = range(demo.get_vocab_size(), SMALL.vocab_size)
    assert all(grown.decode([each]) for each in new)
    text = "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1)"
    assert grown.decode(grown.encode(text).ids) == text
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 256


def test_a_tokenizer_that_does_not_fit_is_refused() -> None:
    document = json.loads((DEMO / "tokenizer.json").read_text())
    with pytest.raises(ValueError, match="has 4096 ids, the model's vocabulary 4000"):
        grow(document, 4000)
    with pytest.raises(ValueError, match="Unigram, not BPE"):
        grow({"model": {"type": "Unigram"}}, 4096)


def test_presets_have_the_sizes_of_their_names() -> None:
    sizes = {name: shape.num_parameters / 1e6 for name, shape in PRESETS.items()}
    assert sizes == pytest.approx({"35m": 32.0, "300m": 301.5, "1b": 1498.5, "8b": 8030.3}, 1e-3)
    with pytest.raises(ValueError, match="must be a multiple of 3 heads"):
        Shape(64, 1, 3, 1)


def test_the_command_writes_one_and_refuses_to_overwrite_it(tmp_path: Path) -> None:
    command = [ROOT / "scripts/make_checkpoint", tmp_path / "m", "--hidden", "32", "--layers", "1"]
    command += ["--heads", "2", "--kv-heads", "1", "--intermediate", "48", "--dtype", "bfloat16"]
    for status, words in ((0, "million parameters, bfloat16"), (1, "holds a model already")):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert done.returncode == status
        assert words in done.stdout + done.stderr
    config = json.loads((tmp_path / "m/config.json").read_text())
    assert (config["hidden_size"], config["torch_dtype"]) == (32, "bfloat16")
