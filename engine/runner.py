"""The real `node.runner.Runner`: a StepBatch through the decoder and the sampler, on one device.

On the CPU a step is cut into as many parts as there are threads, each of which goes from tokens to
drawn tokens on its own.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from operator import itemgetter

import torch

from engine.batch import Batch, build_batch
from engine.decoder import Decoder, States
from engine.evaluation import answer
from engine.kv_pool import KVPool
from engine.on_device import on_device
from engine.parts import FEW_ROWS, Part, cut_step
from engine.step_threads import StepThreads, Written
from kernels.cpu.team import ProductTeam
from node.runner import Deferred, Sampled, SampleRequest, StepBatch, StepResult
from tandem.layout import KVLayout

Sample = Callable[[torch.Tensor, Sequence[SampleRequest]], Sequence[Sampled]]


class TorchRunner:
    """Runs one step at a time over one KV pool; `sample` draws from logits [N, vocab].

    `sample` is called by several threads at once where `num_threads` is above 1, which is for the
    CPU. `pair_cost`: what attention to one token costs in units of a row (see `engine/parts.py`).
    `team`: of the decoder's products; steps of few rows are not cut, their products are shared.
    """

    def __init__(
        self,
        decoder: Decoder,
        pool: KVPool,
        sample: Sample,
        device: torch.device,
        num_threads: int = 1,
        pair_cost: float = 0.0,
        team: ProductTeam | None = None,
    ) -> None:
        self._decoder = decoder
        self._pool = pool
        self._sample = sample
        self._device = device
        self._threads = StepThreads(num_threads, team)
        self._pair_cost = pair_cost

    @property
    def layout(self) -> KVLayout:
        """Geometry of the pool."""
        return self._pool.layout

    @property
    def num_pages(self) -> int:
        """Usable pages: the scratch page comes behind them."""
        return self._pool.num_pages

    @property
    def pool(self) -> KVPool:
        """The KV pool, for transports that copy pages."""
        return self._pool

    @property
    def generates(self) -> bool:
        """Whether it draws tokens; a model with a classification head only answers questions."""
        return self._decoder.num_labels == 0

    def logits(self, step: StepBatch) -> torch.Tensor:
        """Logits [N, vocab] of the sequences that sample, in their order; writes their KV."""

        def compute(part: Part, written: Written) -> list[tuple[int, torch.Tensor]]:
            batch, states = self._forward(part.step, written)
            rows = self._logits(batch, states).unbind()
            ids = [part.sequence_ids[i] for i in batch.sequence_ids]
            return list(zip(ids, rows, strict=True))

        with on_device(self._device):
            found = chain.from_iterable(self._threads.run(self._cut(step), compute))
        return torch.stack([row for _, row in sorted(found, key=itemgetter(0))])

    def run(self, batch: StepBatch) -> StepResult:
        """Compute one step and draw; returns when all of it is done, on the device too.

        Pages are offered to other processes as soon as this returns, also those of prompts that
        sampled nothing and so made nobody wait for the device.
        """
        sampled: list[Sampled | None] = [None] * len(batch.sequences)
        parts = self._cut(batch)
        if parts:
            with on_device(self._device):
                results = self._threads.run(parts, self._run_part)
            for part, drawn in zip(parts, results, strict=True):
                for sequence_id, result in drawn:
                    sampled[part.sequence_ids[sequence_id]] = result
        return StepResult(tuple(sampled))

    def launch(self, batch: StepBatch) -> Deferred:
        """Compute when the result is asked for."""
        return Deferred(self.run, batch)

    def _cut(self, step: StepBatch) -> tuple[Part, ...]:
        threads = self._threads
        is_shared = threads.has_team and step.num_tokens <= FEW_ROWS
        return cut_step(step, 1 if is_shared else threads.num_threads, self._pair_cost)

    def _run_part(self, part: Part, written: Written) -> list[tuple[int, Sampled]]:
        """What was drawn and answered, with the index of its sequence in the part."""
        batch, states = self._forward(part.step, written)
        with torch.inference_mode():
            found = [
                (asked.sequence_id, answer(self._decoder, states, asked)) for asked in batch.asked
            ]
        if batch.requests:
            drawn = self._sample(self._logits(batch, states), batch.requests)
            found += zip(batch.sequence_ids, drawn, strict=True)
        elif self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return found

    def _forward(self, step: StepBatch, written: Written) -> tuple[Batch, States]:
        pool = self._pool
        with torch.inference_mode():
            device = None if self._decoder.takes_arrays else self._device
            batch = build_batch(step, pool.layout.page_size, pool.scratch_page, device)
            return batch, self._decoder.states(batch, pool.tensor, written)

    def _logits(self, batch: Batch, states: States) -> torch.Tensor:
        with torch.inference_mode():
            return self._decoder.head(self._decoder.normed(states, batch.sample_rows))
