"""The real `node.runner.Runner`: a StepBatch through the decoder and the sampler, on one device."""

from collections.abc import Callable, Sequence

import torch

from engine.batch import build_batch
from engine.decoder import Decoder
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

    def logits(self, step: StepBatch) -> torch.Tensor:
        """Logits [N, vocab] of the sequences that sample, in their order; writes their KV."""
        return self._forward(step)[0]

    def run(self, batch: StepBatch) -> StepResult:
        """Compute one step and draw; returns when all of it is done, on the device too.

        Pages are offered to other processes as soon as this returns, also those of prompts that
        sampled nothing and so made nobody wait for the device.
        """
        sampled: list[Sampled | None] = [None] * len(batch.sequences)
        if batch.num_tokens == 0:
            return StepResult(tuple(sampled))
        logits, requests, sequence_ids = self._forward(batch)
        if requests:
            drawn = self._sample(logits, requests)
            for sequence_id, result in zip(sequence_ids, drawn, strict=True):
                sampled[sequence_id] = result
        elif self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return StepResult(tuple(sampled))

    def _forward(
        self, step: StepBatch
    ) -> tuple[torch.Tensor, tuple[SampleRequest, ...], tuple[int, ...]]:
        pool = self._pool
        with torch.inference_mode():
            batch = build_batch(step, pool.layout.page_size, pool.scratch_page, self._device)
            logits = self._decoder.forward(batch, pool.tensor)
        return logits, batch.requests, batch.sequence_ids
