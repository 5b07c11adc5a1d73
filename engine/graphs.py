"""Decode steps over static buffers: captured once for each size, then one launch each.

A step of `num_rows` rows is the decoder, the language-model head, the draw and the write of what
was drawn into the rows that the next step reads (`engine/resident_batch.py`). Nothing in it asks
the host, so a CUDA graph can hold all of it. On the CPU "captured" means called: the same function
over the same buffers, so that everything but the capture itself is tested there.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from engine.decoder import Decoder
from engine.resident_batch import ResidentBatch
from engine.sampler_reference import draw_unfiltered_reference
from kernels.argmax import argmax_rows, argmax_rows_reference
from kernels.decode_rows import CHOICE, INDEX, SEED, TEMPERATURE
from kernels.gumbel_argmax import gumbel_argmax

StaticStep = Callable[[], torch.Tensor]
"""Runs the step; its logits [rows, vocab], which the next run of any size may overwrite."""
Capture = Callable[[StaticStep], StaticStep]
FINE_SIZES = (1, 2, 4, 8)
SIZE_STEP = 16  # rows beyond those: a padding row costs a share of attention and head, no weights


def captured_sizes(max_rows: int) -> tuple[int, ...]:
    """Rows that steps are captured for, ascending: 1, 2, 4, 8, then every 16, then the largest."""
    sizes = {*FINE_SIZES, *range(SIZE_STEP, max_rows, SIZE_STEP), max_rows}
    return tuple(sorted(size for size in sizes if size <= max_rows))


def decode_step(
    decoder: Decoder, pool: torch.Tensor, rows: ResidentBatch, num_rows: int, *, with_noise: bool
) -> torch.Tensor:
    """Compute and advance the first rows; logits [num_rows, vocab]. Never waits for the device."""
    states = decoder.states(rows.batch(num_rows), pool)
    logits = decoder.head(decoder.normed(states, slice(None)))
    draw_and_advance(rows, logits, with_noise=with_noise)
    return logits


def draw_and_advance(rows: ResidentBatch, logits: torch.Tensor, *, with_noise: bool) -> None:
    """Draw the next token of the first rows from their logits [n, vocab] and write it down.

    Without noise every row takes its largest logit, the lowest id among equals; with it the rows
    with a temperature draw as `engine/sampler_reference.py` says, where no filter is asked for.
    """
    token_ids, largest = (argmax_rows if logits.is_cuda else argmax_rows_reference)(logits)
    if with_noise:
        state = rows.state[: len(logits)]
        temperature = state[:, TEMPERATURE].view(torch.float64)
        keys = [temperature, *(state[:, column] for column in (SEED, CHOICE, INDEX))]
        if logits.is_cuda:  # in torch the noise is some 250 kernels, ten times the logits' bytes
            token_ids = gumbel_argmax(logits, largest, *keys)
        else:
            token_ids = draw_unfiltered_reference(logits, *keys)
    rows.advance(token_ids, largest)


class DecodeGraphs:
    """One step of every size, with and without noise.

    Captured largest first: what a larger one took of the pool, a smaller one finds there.
    """

    def __init__(
        self,
        decoder: Decoder,
        pool: torch.Tensor,
        rows: ResidentBatch,
        sizes: Sequence[int],
        capture: Capture,
    ) -> None:
        assert list(sizes) == sorted(set(sizes)) and sizes[-1] == rows.max_rows
        self._sizes = sizes
        self._steps: dict[tuple[int, bool], StaticStep] = {}
        for num_rows in reversed(sizes):
            for with_noise in (True, False):
                step = partial(decode_step, decoder, pool, rows, num_rows, with_noise=with_noise)
                self._steps[num_rows, with_noise] = capture(step)

    def size_for(self, num_rows: int) -> int:
        """The smallest captured size that has room for so many rows."""
        return next(size for size in self._sizes if size >= num_rows)

    def run(self, size: int, *, with_noise: bool) -> torch.Tensor:
        """Launch one step of a captured size; its logits [size, vocab], valid until the next."""
        return self._steps[size, with_noise]()


def called(step: StaticStep) -> StaticStep:
    """The capture of a device without graphs: the step itself."""
    return step


class CudaCapture:
    """Captures steps of one CUDA device as graphs that share one pool of memory.

    No other thread may use the device meanwhile: capture before they start.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: StaticStep) -> StaticStep:
        """Run it once (compiles kernels, makes workspaces), capture it, and replay it from then."""
        with torch.cuda.device(self._device), torch.inference_mode():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                logits = step()

        def replay() -> torch.Tensor:
            graph.replay()
            return logits

        return replay
