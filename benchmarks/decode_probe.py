"""Decode steps of a decoder with random weights made on the device: no files, plain or captured."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.bundles import select_ops
from engine.decoder import Decoder, kv_layout
from engine.graphs import CudaCapture, DecodeGraphs, called
from engine.kv_pool import TORCH_DTYPES, KVPool, make_kv_pool
from engine.ops import plain_ops
from engine.resident_batch import ResidentBatch
from engine.resident_runner import ResidentRunner
from engine.runner import TorchRunner
from engine.sampler import Sampler
from engine.weights import expected_shapes
from node.runner import Runner, SampleRequest, SequenceStep, StepBatch
from tandem.model_config import ModelConfig, ModelDtype
from tandem.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0)
NUM_STEPS = 20  # of a measurement
NUM_FIRST = 3  # not timed
ROOM = NUM_FIRST + 3 * NUM_STEPS  # tokens that each sequence can grow by


@dataclass(frozen=True, slots=True)
class DecodeTimes:
    """Seconds of one step. host_s: from one result to the next, as a node sees it.

    device_s: of steps queued behind each other, none of which waits for the host; of a plain runner
    it is host_s, because that draws on the host's side.
    """

    host_s: float
    device_s: float


class DecodeProbe:
    """A decoder over a pool that holds `num_pages` pages of random KV."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_pages: int,
        max_context: int,
        device: str = "cuda",
        dtype: ModelDtype = "bfloat16",
        page_size: int = 16,
    ) -> None:
        self._device = torch.device(device)
        self._max_context = max_context + ROOM
        is_gpu = self._device.type == "cuda"  # rows that stay on a device are tensors
        ops = select_ops(self._device, dtype, "fast", config) if is_gpu else plain_ops()
        torch.manual_seed(0)
        weights = {
            name: torch.empty(shape, dtype=TORCH_DTYPES[dtype], device=self._device).normal_(
                0, 0.02
            )
            for name, shape in expected_shapes(config).items()
        }
        self._decoder = Decoder(config, weights, ops, self._max_context)
        del weights
        layout = kv_layout(config, page_size, dtype)
        self._pool: KVPool = make_kv_pool(layout, num_pages, self._device)
        self._pool.tensor.normal_()
        self._plain = TorchRunner(self._decoder, self._pool, Sampler().sample, self._device)

    def decode_step_times(self, batch: int, context: int, *, with_graphs: bool) -> DecodeTimes:
        """One greedy step of `batch` rows that each attend to about `context` tokens.

        ValueError where the probe's pages cannot hold them.
        """
        tables = self._tables(batch, context)
        if not with_graphs:
            seconds = self._host_s(self._plain, tables, context)
            return DecodeTimes(seconds, seconds)
        max_pages = self._pool.layout.num_pages_for(self._max_context)
        rows = ResidentBatch(
            batch, max_pages, self._pool.layout.page_size, self._pool.scratch_page, self._device
        )
        capture = CudaCapture(self._device) if self._device.type == "cuda" else called
        graphs = DecodeGraphs(self._decoder, self._pool.tensor, rows, (batch,), capture)
        sample = Sampler().sample
        runner = ResidentRunner(self._plain, self._decoder, sample, rows, graphs, self._device)
        host_s = self._host_s(runner, tables, context)
        runner.run(self._step(tables, context, np.zeros(batch, np.int32)))

        def queued() -> None:
            with torch.inference_mode():
                for _ in range(NUM_STEPS):
                    graphs.run(batch, with_noise=False)
            self._synchronize()

        return DecodeTimes(host_s, _seconds(queued) / NUM_STEPS)

    def _host_s(self, runner: Runner, tables: NDArray[np.int32], context: int) -> float:
        tokens = np.zeros(len(tables), np.int32)
        times = []
        for k in range(NUM_FIRST + NUM_STEPS):
            step = self._step(tables, context + k, tokens)
            began = time.perf_counter()
            result = runner.run(step)
            times.append(time.perf_counter() - began)
            tokens = np.array([s.token_id for s in result.sampled if s is not None], np.int32)
        return float(np.median(times[NUM_FIRST:]))

    def _step(
        self, tables: NDArray[np.int32], context: int, tokens: NDArray[np.int32]
    ) -> StepBatch:
        """All rows compute their token at position `context` - 1."""
        nothing = np.zeros(0, np.int32)
        return StepBatch(
            tuple(
                SequenceStep(
                    tokens[row : row + 1],
                    context - 1,
                    table,
                    SampleRequest(GREEDY, 0, 0, context, nothing, nothing, (), (b"%d" % row, 1)),
                )
                for row, table in enumerate(tables)
            )
        )

    def _tables(self, batch: int, context: int) -> NDArray[np.int32]:
        pages_each = self._pool.layout.num_pages_for(context + ROOM)
        if batch * pages_each > self._pool.num_pages:
            raise ValueError(
                f"{batch} x {context} tokens need {batch * pages_each} pages, the probe has "
                f"{self._pool.num_pages}: give it more"
            )
        order = np.random.default_rng(0).permutation(self._pool.num_pages).astype(np.int32)
        return order[: batch * pages_each].reshape(batch, pages_each)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _seconds(work: Callable[[], None]) -> float:
    """Of the second run."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
