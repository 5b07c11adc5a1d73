"""Random-weight checkpoints of every family, written and run by transformers: the oracle."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from engine.build import EngineOptions, build_runner
from engine.runner import TorchRunner
from node.runner import SampleRequest, SequenceStep, StepBatch
from tandem.model_folder import load_model_config
from tandem.sampling import SamplingParams

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
# Windows are shorter than the prompts, so that they matter; head_dim 24 is no multiple of 16.
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama2": lambda: transformers.LlamaConfig(**SIZES | {"num_key_value_heads": 4}),
    "llama3": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE),
    "llama-biased": lambda: transformers.LlamaConfig(
        **SIZES,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    ),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=20, head_dim=24),
    "qwen2": lambda: transformers.Qwen2Config(
        **SIZES,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=24,
        max_window_layers=1,
        layer_types=None,
    ),
    "qwen2.5": lambda: transformers.Qwen2Config(
        **SIZES, tie_word_embeddings=True, rope_parameters=YARN_ROPE
    ),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=False),
}
SHARDED = "qwen3"


@dataclass(frozen=True)
class Checkpoint:
    """A model folder and the same weights in transformers."""

    folder: Path
    name: str

    def oracle(self, dtype: torch.dtype) -> Any:
        """transformers' model; in float64 its norms compute in float64 too, not in float32."""
        model = transformers.AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype).eval()
        if dtype == torch.float64:
            for module in model.modules():
                if type(module).__name__.endswith("RMSNorm"):
                    module.forward = _float64_norm(module)
        return model

    def runner(self, **options: Any) -> TorchRunner:
        """Our runner over the same folder, with 64 pages."""
        return build_runner(
            self.folder,
            load_model_config(self.folder),
            EngineOptions(num_pages=64, max_num_batched_tokens=64, max_num_seqs=4, **options),
            on_phase=lambda name, seconds: None,
            progress=lambda done, total: None,
        ).runner


def _float64_norm(norm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        mean = x.square().mean(-1, keepdim=True)
        return norm.weight * (x * torch.rsqrt(mean + norm.variance_epsilon))

    return forward


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """Writes a family's checkpoint once; every tensor random, norms and biases included."""
    written: dict[str, Checkpoint] = {}

    def write(name: str) -> Checkpoint:
        if name not in written:
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(FAMILIES[name]())
            for parameter in model.parameters():
                mean = 0.0 if parameter.ndim > 1 else 1.0
                torch.nn.init.normal_(parameter, mean, 0.15)
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder, max_shard_size="100KB" if name == SHARDED else "1GB")
            written[name] = Checkpoint(folder, name)
        return written[name]

    return write


@pytest.fixture
def prompt() -> NDArray[np.int32]:
    """120 tokens: longer than the windows, and a part of a page at the end."""
    return np.random.default_rng(0).integers(0, 512, 120).astype(np.int32)


@pytest.fixture
def step_of() -> Callable[..., SequenceStep]:
    """Builds a sequence's step over pages in an order of their own, sampling greedily."""
    nothing = np.zeros(0, np.int32)
    request = SampleRequest(SamplingParams(temperature=0.0), 0, 0, 0, nothing, nothing, ())

    def step(
        tokens: NDArray[np.int32], start: int, end: int, pages: NDArray[np.int32]
    ) -> SequenceStep:
        return SequenceStep(tokens[start:end], start, pages, request)

    return step


@pytest.fixture
def generate() -> Callable[..., list[list[int]]]:
    """Greedy answers of all prompts at once: prompts in chunks, decodes beside them."""

    def run(
        runner: TorchRunner, prompts: list[NDArray[np.int32]], num_new: int, chunk: int
    ) -> list[list[int]]:
        per_prompt = runner.num_pages // len(prompts)
        tables = [
            np.arange(i * per_prompt, (i + 1) * per_prompt, dtype=np.int32)
            for i in range(len(prompts))
        ]
        tokens = [prompt.copy() for prompt in prompts]
        computed = [0] * len(prompts)
        ends = [len(prompt) + num_new for prompt in prompts]
        while any(len(known) < end for known, end in zip(tokens, ends, strict=True)):
            active = [i for i, known in enumerate(tokens) if len(known) < ends[i]]
            steps = []
            for i in active:
                end = min(computed[i] + chunk, len(tokens[i]))
                known = tokens[i]
                is_last = end == len(known)
                request = SampleRequest(
                    SamplingParams(temperature=0.0), 0, 0, 0, known[:0], known[:0], ()
                )
                part = known[computed[i] : end]
                steps.append(
                    SequenceStep(part, computed[i], tables[i], request if is_last else None)
                )
                computed[i] = end
            for i, sampled in zip(active, runner.run(StepBatch(tuple(steps))).sampled, strict=True):
                if sampled is not None:
                    tokens[i] = np.append(tokens[i], np.int32(sampled.token_id))
        return [
            known[len(prompt) :].tolist() for known, prompt in zip(tokens, prompts, strict=True)
        ]

    return run
