"""The real `node.runner.Runner`: a StepBatch through the decoder and the sampler, on one device."""

from collections.abc import Callable, Sequence

import torch

from engine.batch import Batch, build_batch
from engine.decoder import Decoder, States
from engine.evaluation import answer
from engine.kv_pool import KVPool
from node.runner import Sampled, SampleRequest, StepBatch, StepResult
from tandem.layout import KVLayout

Sample = Callable[[torch.Tensor, Sequence[SampleRequest]], Sequence[Sampled]]


class TorchRunner:
    """Runs one step at a time over one KV pool; `sample` draws from logits [N, vocab]."""

    def __init__(
        self, decoder: Decoder, pool: KVPool, sample: Sample, device: torch.device
    ) -> None:
        self._decoder = decoder
        self._pool = pool
        self._sample = sample
        self._device = device

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
        return self._logits(*self._forward(step))

    def run(self, batch: StepBatch) -> StepResult:
        """Compute one step and draw; returns when all of it is done, on the device too.

        Pages are offered to other processes as soon as this returns, also those of prompts that
        sampled nothing and so made nobody wait for the device.
        """
        sampled: list[Sampled | None] = [None] * len(batch.sequences)
        if batch.num_tokens == 0:
            return StepResult(tuple(sampled))
        flat, states = self._forward(batch)
        with torch.inference_mode():
            for asked in flat.asked:
                sampled[asked.sequence_id] = answer(self._decoder, states, asked)
        if flat.requests:
            drawn = self._sample(self._logits(flat, states), flat.requests)
            for sequence_id, result in zip(flat.sequence_ids, drawn, strict=True):
                sampled[sequence_id] = result
        elif self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return StepResult(tuple(sampled))

    def _forward(self, step: StepBatch) -> tuple[Batch, States]:
        pool = self._pool
        with torch.inference_mode():
            batch = build_batch(step, pool.layout.page_size, pool.scratch_page, self._device)
            return batch, self._decoder.states(batch, pool.tensor)

    def _logits(self, batch: Batch, states: States) -> torch.Tensor:
        with torch.inference_mode():
            return self._decoder.head(self._decoder.normed(states, batch.sample_rows))
