"""Builds the resident runner of a GPU, and measures there what steps take of its memory.

The measurement runs and captures the largest steps over a pool of nothing but the scratch page, and
reads the high-water mark of torch's allocator: what other processes of the device take meanwhile
does not count.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from engine.decoder import Decoder
from engine.graphs import Capture, CudaCapture, DecodeGraphs, called, captured_sizes
from engine.kv_pool import TORCH_DTYPES, KVPool, make_kv_pool
from engine.resident_batch import ResidentBatch
from engine.resident_runner import ResidentRunner
from engine.runner import Sample, TorchRunner
from node.runner import SampleRequest, SequenceStep, StepBatch
from tandem.layout import KVLayout
from tandem.sampling import SamplingParams

FILTERED = SamplingParams(temperature=1.0, top_p=0.9)  # the draw that takes most memory


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The largest steps of a node."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int


def make_resident_runner(
    plain: TorchRunner, decoder: Decoder, sample: Sample, device: torch.device, limits: StepLimits
) -> ResidentRunner:
    """A runner over the pages of `plain`; captures all its steps. No other thread uses the device.

    On a device without graphs its steps are called, which is for tests.
    """
    sizes = captured_sizes(limits.max_num_seqs)
    rows = _make_rows(plain.pool, device, limits)
    graphs = DecodeGraphs(decoder, plain.pool.tensor, rows, sizes, _capture(device))
    return ResidentRunner(plain, decoder, sample, rows, graphs, device)


def measure_step_bytes(
    decoder: Decoder, layout: KVLayout, sample: Sample, device: torch.device, limits: StepLimits
) -> int:
    """Bytes of device memory that steps and their graphs take beside weights and pages."""
    pool = make_kv_pool(layout, 0, device)
    plain = TorchRunner(decoder, pool, sample, device)
    largest = largest_step(layout, pool.scratch_page, limits)

    def capture() -> object:
        rows = _make_rows(pool, device, limits)
        sizes = (limits.max_num_seqs,)
        return DecodeGraphs(decoder, pool.tensor, rows, sizes, _capture(device))

    measured = _peak_bytes(device, lambda: plain.run(largest)) + _peak_bytes(device, capture)
    return measured + kept_logits_bytes(decoder.vocab_size, layout, limits.max_num_seqs)


def kept_logits_bytes(vocab_size: int, layout: KVLayout, max_rows: int) -> int:
    """What each captured step but the largest two keeps: its logits, 1.1 GB for 256 rows of 128k.

    All else of a smaller step lies where a larger one had its own.
    """
    num_rows = 2 * sum(captured_sizes(max_rows)[:-1])  # with noise and without
    return num_rows * vocab_size * TORCH_DTYPES[layout.dtype].itemsize


def largest_step(layout: KVLayout, scratch_page: int, limits: StepLimits) -> StepBatch:
    """As many rows as there may be, at full context, and a chunk of all tokens that are left."""
    nothing = np.zeros(0, np.int32)
    request = SampleRequest(FILTERED, 0, 0, 0, nothing, nothing, ())

    def step(num_tokens: int, end: int) -> SequenceStep:
        table = np.full(layout.num_pages_for(end), scratch_page, np.int32)
        return SequenceStep(np.zeros(num_tokens, np.int32), end - num_tokens, table, request)

    num_rows = min(limits.max_num_seqs, limits.max_num_batched_tokens)
    rows = [step(1, limits.max_model_len) for _ in range(num_rows)]
    num_left = min(limits.max_num_batched_tokens - num_rows, limits.max_model_len)
    return StepBatch((*rows, step(num_left, num_left)) if num_left > 0 else tuple(rows))


def _make_rows(pool: KVPool, device: torch.device, limits: StepLimits) -> ResidentBatch:
    page_size = pool.layout.page_size
    max_pages = pool.layout.num_pages_for(limits.max_model_len)
    return ResidentBatch(limits.max_num_seqs, max_pages, page_size, pool.scratch_page, device)


def _capture(device: torch.device) -> Capture:
    return CudaCapture(device) if device.type == "cuda" else called


def _peak_bytes(device: torch.device, work: Callable[[], object]) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    kept = work()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_reserved(device)
    del kept
    torch.cuda.empty_cache()
    return peak - before
