"""A runner without a model: the next token is a hash of what the KV pages say the history is.

Its "KV" of a token is the token's id and position, kept in the same pages, with the same layout
arithmetic, as a real runner's: a page that is lost, swapped, reused too early or corrupted changes
the tokens that follow. For fault tests and the simulator.
"""

import threading
import time
import zlib

import numpy as np
from numpy.typing import NDArray

from node.runner import (
    SUM_BITS,
    ChunkQuestion,
    ChunkValues,
    Deferred,
    Sampled,
    SequenceStep,
    StepBatch,
    StepResult,
)
from scheduling.costs import step_s, step_shape
from tandem.layout import KVLayout
from tandem.messages.common import NodeCosts

FAKE_VECTOR_SIZE = 4
FAKE_LAYOUT = KVLayout(num_layers=1, num_kv_heads=1, head_dim=1, page_size=16, dtype="float32")


class FakeRunner:
    """Computes over `pool`, uint8 [pages, page_bytes] of `FAKE_LAYOUT`.

    A step takes `step_s`, and what `costs` give for its shape. After `wedge()` the next one hangs
    for `wedge_s` before it computes.
    """

    def __init__(
        self,
        pool: NDArray[np.uint8],
        *,
        vocab_size: int,
        step_s: float = 0.0,
        costs: NodeCosts | None = None,
        wedge_s: float = 0.0,
    ) -> None:
        slots = pool.view(np.int32)
        self._tokens = slots[:, : FAKE_LAYOUT.page_size]  # in place of K
        self._positions = slots[:, FAKE_LAYOUT.page_size :]  # in place of V
        self._vocab_size = vocab_size
        self._step_s = step_s
        self._costs = costs
        self._wedge_s = wedge_s
        self._is_wedge_wanted = threading.Event()

    def wedge(self) -> None:
        """Hang in the next step; from any thread, or a signal handler."""
        self._is_wedge_wanted.set()

    @property
    def layout(self) -> KVLayout:
        """Geometry of the pool."""
        return FAKE_LAYOUT

    @property
    def num_pages(self) -> int:
        """Usable pages of the pool."""
        return len(self._tokens)

    def run(self, batch: StepBatch) -> StepResult:
        """Write the new tokens' "KV", then hash each history that asks for a sample."""
        if self._is_wedge_wanted.is_set():
            self._is_wedge_wanted.clear()
            time.sleep(self._wedge_s)
        duration_s = self._step_s + (0.0 if self._costs is None else batch_s(self._costs, batch))
        if duration_s:
            time.sleep(duration_s)
        return StepResult(tuple(self._run_sequence(s) for s in batch.sequences))

    def launch(self, batch: StepBatch) -> Deferred:
        """Compute when the result is asked for."""
        return Deferred(self.run, batch)

    def _run_sequence(self, sequence: SequenceStep) -> Sampled | None:
        size = FAKE_LAYOUT.page_size
        positions = np.arange(sequence.start, sequence.start + len(sequence.token_ids))
        pages = sequence.block_table[positions // size]
        self._tokens[pages, positions % size] = sequence.token_ids
        self._positions[pages, positions % size] = positions
        if sequence.sample is None and sequence.question is None:
            return None
        end = sequence.start + len(sequence.token_ids)
        table = sequence.block_table[: -(-end // size)]
        history = self._tokens[table].reshape(-1)[:end]
        told = self._positions[table].reshape(-1)[:end]
        if not np.array_equal(told, np.arange(end)):
            return Sampled(0, error="the KV pages hold positions of another history")
        if sequence.question is not None:
            return Sampled(0, values=fake_values(sequence, sequence.question, history))
        assert sequence.sample is not None, "one of the two is there"
        has_logprobs = sequence.sample.params.logprobs is not None
        token_id = fake_token(history, self._vocab_size)
        return Sampled(token_id, logprob=0.0 if has_logprobs else None)


def batch_s(costs: NodeCosts, batch: StepBatch) -> float:
    """Seconds that a batch takes; one token after others is a decode row, as is a padded row."""
    steps = [(len(s.token_ids), s.start) for s in batch.sequences]
    rows = [start + 1 for num_tokens, start in steps if num_tokens == 1 and start]
    chunks = [(num_tokens, start) for num_tokens, start in steps if num_tokens > 1 or not start]
    return step_s(costs, step_shape(chunks, [*rows, *batch.padding_contexts]))


def fake_token(history: NDArray[np.int32], vocab_size: int) -> int:
    """The token after `history`: what a test expects of any run, on any node, in any batch."""
    return _hash(history) % vocab_size


def fake_vector(history: NDArray[np.int32]) -> NDArray[np.float32]:
    """The "hidden state" of the last token of `history`."""
    numbers = [zlib.crc32(b"%d" % i, _hash(history)) for i in range(FAKE_VECTOR_SIZE)]
    return (np.array(numbers) / 2**31 - 1).astype(np.float32)


def fake_logprob(history: NDArray[np.int32], token_id: int) -> float:
    """Of a token after `history`: from -10 to 0, and all alternatives are the token itself."""
    return -((_hash(history) ^ token_id) % 1000) / 100


def fake_values(
    sequence: SequenceStep, question: ChunkQuestion, history: NDArray[np.int32]
) -> ChunkValues:
    """The answer about a chunk with all tokens up to its end; a sum is of the token ids."""
    if question.kind == "sum":
        total = int(sequence.token_ids.sum(dtype=np.int64)) << SUM_BITS
        return ChunkValues(vector=np.full(FAKE_VECTOR_SIZE, total, np.int64))
    if question.kind != "logprobs":
        return ChunkValues(vector=fake_vector(history))
    first = sequence.start + question.first_row + 1
    logprobs = [
        fake_logprob(history[: first + i], int(token_id))
        for i, token_id in enumerate(question.next_ids)
    ]
    chosen = np.array(logprobs, np.float32)
    top_ids = np.repeat(question.next_ids, question.num_top)
    return ChunkValues(
        logprobs=chosen, top_ids=top_ids, top_logprobs=np.repeat(chosen, question.num_top)
    )


def _hash(history: NDArray[np.int32]) -> int:
    return zlib.crc32(np.ascontiguousarray(history, dtype="<i4").tobytes())
