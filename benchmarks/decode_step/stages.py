"""A runner that tells how long each of its operations took, over a decoder with random weights."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, cycle

import numpy as np
import torch

from engine.batch import Batch, Rows
from engine.bundles import select_ops
from engine.decoder import Decoder, kv_layout
from engine.kv_pool import TORCH_DTYPES, make_kv_pool
from engine.ops import Linear, Ops
from engine.parts import pair_cost
from engine.runner import TorchRunner
from engine.sampler import Sampler
from engine.weights import expected_shapes
from kernels.cpu.team import ProductTeam
from node.runner import Sampled, SampleRequest
from tandem.model_config import ModelConfig, ModelDtype

CPU = torch.device("cpu")
PAGE_SIZE = 16
SAMPLE = "sample"
# Operations whose time is the model's own; the rest of a step is what it costs to run a model.
MODEL = ("embed", "rms_norm", "qkv", "rope_write", "attention", "output", "gate_up", "silu_and_mul",
         "down", "head")  # fmt: skip


class StageClock:
    """Seconds by stage, summed over the threads that worked on it."""

    def __init__(self) -> None:
        self._seconds: defaultdict[tuple[int, str], float] = defaultdict(float)

    def timed(self, stage: str, work: Callable[..., Rows]) -> Callable[..., Rows]:
        """`work`, whose time counts for the stage."""

        def call(*args: Rows, **named: Rows) -> Rows:
            began = time.perf_counter()
            result = work(*args, **named)
            self._seconds[threading.get_ident(), stage] += time.perf_counter() - began
            return result

        return call

    def take(self) -> dict[str, float]:
        """What has come together since the last call."""
        found: defaultdict[str, float] = defaultdict(float)
        for (_, stage), seconds in self._seconds.items():
            found[stage] += seconds
        self._seconds.clear()
        return dict(found)


class TimedModel:
    """A decoder, its pool and a clock; runners over it share all three."""

    def __init__(self, config: ModelConfig, dtype: ModelDtype, num_pages: int) -> None:
        self.config = config
        self.clock = StageClock()
        self._team = ProductTeam()
        ops = select_ops(CPU, dtype, "auto", config, self._team)
        generator = torch.Generator().manual_seed(0)
        weights = {
            name: torch.ones(shape, dtype=TORCH_DTYPES[dtype])
            if len(shape) == 1
            else (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).to(
                TORCH_DTYPES[dtype]
            )
            for name, shape in expected_shapes(config).items()
        }
        self.decoder = Decoder(config, weights, self._timed(ops), config.max_position_embeddings)
        self.layout = kv_layout(config, PAGE_SIZE, dtype)
        self.pool = make_kv_pool(self.layout, num_pages, CPU)

    def runner(self, num_threads: int) -> TorchRunner:
        """One with so many threads."""
        sample: Callable[[torch.Tensor, Sequence[SampleRequest]], list[Sampled]] = self.clock.timed(
            SAMPLE, Sampler().sample
        )
        cost = pair_cost(self.config)
        team = self._team if num_threads > 1 else None
        return TorchRunner(self.decoder, self.pool, sample, CPU, num_threads, cost, team)

    def seconds_without_rows(self, num_repeats: int) -> float:
        """What calling every operation costs: the least time of a pass that computes nothing."""
        nothing, starts = np.zeros(0, np.int32), np.zeros(1, np.int32)
        batch = Batch(
            token_ids=nothing,
            positions=nothing,
            page_ids=nothing,
            offsets=nothing,
            block_tables=nothing.reshape(0, 1),
            query_starts=starts,
            context_lens=nothing,
            sample_rows=nothing,
            num_decode=0,
            requests=(),
            sequence_ids=(),
        )
        times = []
        with torch.inference_mode():
            for _ in range(num_repeats):
                began = time.perf_counter()
                states = self.decoder.states(batch, self.pool.tensor)
                self.decoder.head(self.decoder.normed(states, batch.sample_rows))
                times.append(time.perf_counter() - began)
        self.clock.take()
        return min(times)

    def _timed(self, ops: Ops) -> Ops:
        timed = self.clock.timed
        # In the order in which a decoder prepares them.
        names = chain(["head"], cycle(["qkv", "output", "gate_up", "down"]))

        def make_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
            return timed(next(names), ops.make_linear(weight, bias))

        return replace(
            ops,
            rms_norm=timed("rms_norm", ops.rms_norm),
            rope_write=timed("rope_write", ops.rope_write),
            silu_and_mul=timed("silu_and_mul", ops.silu_and_mul),
            attention=timed("attention", ops.attention),
            embed=timed("embed", ops.embed),
            make_linear=make_linear,
        )
