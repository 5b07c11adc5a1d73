"""Builds the runner of a node: weights, prepared products, KV pool, warm-up, in named phases."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from engine.bundles import Numerics, select_ops
from engine.decoder import Decoder, kv_layout
from engine.grammar import Grammars
from engine.kv_pool import TORCH_DTYPES, AllocateBuffer, make_kv_pool
from engine.memory import MemoryBudget, available_bytes, plan_memory
from engine.on_device import on_device
from engine.parts import pair_cost
from engine.resident_build import StepLimits, make_resident_runner, measure_step_bytes
from engine.resident_runner import ResidentRunner
from engine.runner import TorchRunner
from engine.sampler import Sampler
from engine.warm_up import StepSample, warm_up
from engine.weights import Progress, load_weights
from kernels.cpu.team import ProductTeam
from tandem.model_config import ModelConfig, ModelDtype

OnPhase = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What an operator chooses about the device side.

    dtype: of weights and KV; "auto" is float32 on the CPU (its exact path), else the checkpoint's.
    numerics: "invariant" makes a row's bits independent of what shares its batch; "auto" asks for
    that on the CPU. num_pages: of the KV pool; None takes `memory_share` of what is free once the
    weights are loaded.
    max_model_len: longest sequence; None is the model's own limit. num_threads: that share a step,
    on the CPU only.
    """

    device: str = "cpu"
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "auto"
    numerics: Numerics = "auto"
    page_size: int = 16
    num_pages: int | None = None
    memory_share: float = 0.5
    max_model_len: int | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    num_threads: int = 1


@dataclass(frozen=True, slots=True)
class BuiltRunner:
    """A runner that is ready, and what building it found out."""

    runner: TorchRunner
    config: ModelConfig
    ops_name: str
    max_model_len: int
    budget: MemoryBudget
    step_samples: tuple[StepSample, ...]
    resident: ResidentRunner | None = None

    @property
    def fastest(self) -> TorchRunner | ResidentRunner:
        """What a node computes its steps with."""
        return self.resident or self.runner


def build_runner(
    folder: Path,
    config: ModelConfig,
    options: EngineOptions,
    *,
    allocate: AllocateBuffer | None = None,
    on_phase: OnPhase,
    progress: Progress,
    grammars: Grammars | None = None,
) -> BuiltRunner:
    """Load and prepare everything; `on_phase(name, seconds)` is called after each phase.

    `allocate(num_bytes)` provides the memory of the KV pool, on that device. Without `grammars`
    requests with a JSON schema fail. ValueError with
    advice: bad weights, a context longer than the model's, or too little memory.
    """
    device = torch.device(options.device)
    with on_device(device):
        return _build(folder, config, options, device, allocate, on_phase, progress, grammars)


def _build(
    folder: Path,
    config: ModelConfig,
    options: EngineOptions,
    device: torch.device,
    allocate: AllocateBuffer | None,
    on_phase: OnPhase,
    progress: Progress,
    grammars: Grammars | None,
) -> BuiltRunner:
    """See `build_runner`; the device is the current one."""
    dtype = model_dtype(options, config)
    max_model_len = _max_model_len(options, config)
    with _phase(on_phase, "load weights"):
        weights = load_weights(folder, config, TORCH_DTYPES[dtype], device, progress)
        weight_bytes = _num_bytes(weights)
    with _phase(on_phase, "prepare products"):
        num_threads = options.num_threads if device.type == "cpu" else 1
        team = ProductTeam() if num_threads > 1 else None
        ops = select_ops(device, dtype, options.numerics, config, team)
        decoder = Decoder(config, weights, ops, max_model_len)
        del weights
    with _phase(on_phase, "allocate KV pages"):
        layout = kv_layout(config, options.page_size, dtype)
        limits = StepLimits(options.max_num_seqs, options.max_num_batched_tokens, max_model_len)
        sample = Sampler(grammars).sample
        is_resident = _is_resident(options, config)
        step_bytes = 0
        if is_resident:
            step_bytes = measure_step_bytes(decoder, layout, sample, device, limits)
        budget = plan_memory(
            layout,
            weight_bytes,
            available_bytes(device),
            options.memory_share,
            options.num_pages,
            max_model_len,
            step_bytes,
        )
        pool = make_kv_pool(layout, budget.num_pages, device, allocate)
    cost = pair_cost(config)
    runner = TorchRunner(decoder, pool, sample, device, num_threads, cost, team)
    resident = None
    if is_resident:
        with _phase(on_phase, "capture steps"):
            resident = make_resident_runner(runner, decoder, sample, device, limits)
    with _phase(on_phase, "warm up"):
        samples = warm_up(
            resident or runner, options.max_num_seqs, options.max_num_batched_tokens, max_model_len
        )
    return BuiltRunner(runner, config, ops.name, max_model_len, budget, samples, resident)


def model_dtype(options: EngineOptions, config: ModelConfig) -> ModelDtype:
    """The dtype of weights and KV pages that the options come to."""
    if options.dtype != "auto":
        return options.dtype
    return "float32" if options.device == "cpu" else config.dtype


def _is_resident(options: EngineOptions, config: ModelConfig) -> bool:
    """Invariant numerics need the plain runner's one kernel for all rows; labels draw nothing."""
    is_fast = options.device.startswith("cuda") and options.numerics != "invariant"
    return is_fast and config.num_labels == 0


def _max_model_len(options: EngineOptions, config: ModelConfig) -> int:
    limit = config.max_position_embeddings
    asked = options.max_model_len or limit
    if asked > limit:
        raise ValueError(
            f"--max-model-len {asked} is beyond the model's {limit} positions: lower it, or use a "
            "model with RoPE scaling configured"
        )
    return asked


def _num_bytes(weights: Mapping[str, torch.Tensor]) -> int:
    """Bytes of all weights, tied ones once."""
    sizes = {tensor.data_ptr(): tensor.nbytes for tensor in weights.values()}
    return sum(sizes.values())


@contextmanager
def _phase(on_phase: OnPhase, name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    on_phase(name, time.perf_counter() - started)
