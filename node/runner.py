"""What a node asks of its device, without torch: one batch type for prefill and decode.

The real runner lives in `engine/`; fault tests and the simulator inject a fake one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from scheduling.views import RequestKey
from tandem.layout import KVLayout
from tandem.messages.common import TokenLogprobs
from tandem.sampling import SamplingParams

Int32Array = NDArray[np.int32]


class SampleRequest(msgspec.Struct, frozen=True, gc=False):
    """How to draw the token that follows a sequence's last computed token.

    `prompt_ids` and `output_ids` are the original split (penalties see it so even after a
    fail-over). `output_index` is the absolute index of the token to draw, counted from the first
    output token of the first attempt. `eos_token_ids` end the sequence unless `ignore_eos`;
    the sampler bans them, and the stop ids, until `min_tokens` tokens exist. `key` names the
    attempt, whose ids only grow; None: nothing is remembered of it between two tokens.
    """

    params: SamplingParams
    seed: int
    choice: int
    output_index: int
    prompt_ids: Int32Array
    output_ids: Int32Array
    eos_token_ids: tuple[int, ...]
    key: RequestKey | None = None


@dataclass(frozen=True, slots=True)
class ChunkQuestion:
    """What an evaluation wants to know of a chunk, beside its KV.

    last: the final hidden state of its last token. classes: what the classification head gives for
    it. sum: the final hidden states of all its tokens. logprobs: of `next_ids`, which follow the
    chunk's tokens from its row `first_row` on, and `num_top` alternatives to each.
    """

    kind: Literal["last", "classes", "sum", "logprobs"]
    first_row: int = 0
    next_ids: Int32Array = field(default_factory=lambda: np.zeros(0, np.int32))
    num_top: int = 0


@dataclass(frozen=True, slots=True)
class ChunkValues:
    """The answer to a `ChunkQuestion`; arrays are flat.

    vector: float32; of a sum int64, in units of 2**-`SUM_BITS`, so that sums of chunks are exact in
    whatever parts they were computed. top_ids, top_logprobs: `num_top` for each logprob, best
    first.
    """

    vector: NDArray[np.float32] | NDArray[np.int64] | None = None
    logprobs: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    top_ids: Int32Array = field(default_factory=lambda: np.zeros(0, np.int32))
    top_logprobs: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))


class SequenceStep(msgspec.Struct, frozen=True, gc=False):
    """One sequence's part of a step: its next tokens.

    Computes `token_ids` at absolute positions `start, start + 1, ...`; the KV of positions below
    `start` is already in the pages of `block_table`, which covers `start + len(token_ids)` tokens.
    `sample` asks for the token that follows the last one, `question` for numbers instead.
    """

    token_ids: Int32Array
    start: int
    block_table: Int32Array
    sample: SampleRequest | None
    question: ChunkQuestion | None = None


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Everything one step computes.

    `padding_contexts` are rows of the static baseline whose requests have ended: each is computed
    as a decode row over that many tokens of the scratch page, and its result is dropped.
    """

    sequences: tuple[SequenceStep, ...]
    padding_contexts: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Token rows in the batch, padding included."""
        return sum(len(s.token_ids) for s in self.sequences) + len(self.padding_contexts)


LOWEST_LOGPROB = -1e9
# Hidden states below 2**18 sum up exactly over 2**21 tokens; a step of 2**-24 is below the float32
# precision of numbers around 1.
SUM_BITS = 24
MAX_SUMMED = 2.0**18


class Sampled(msgspec.Struct, frozen=True, gc=False):
    """A drawn token; `error` names why none could be drawn (then `token_id` is meaningless).

    Where a question was asked, `values` answer it and no token is drawn.
    """

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    error: str | None = None
    values: ChunkValues | None = None

    @property
    def wire_logprobs(self) -> TokenLogprobs | None:
        """What travels with the token, where the request asked for it."""
        if self.logprob is None:
            return None
        # The wire takes finite numbers only, and one refused `Emission` would stop every stream.
        return TokenLogprobs(
            logprob=max(LOWEST_LOGPROB, self.logprob),
            top=tuple((token_id, max(LOWEST_LOGPROB, p)) for token_id, p in self.top_logprobs),
        )


@dataclass(frozen=True, slots=True)
class StepResult:
    """`sampled[i]` belongs to `batch.sequences[i]`; None where nothing was asked for."""

    sampled: tuple[Sampled | None, ...]


class Pending(Protocol):
    """A step that was launched."""

    def result(self) -> StepResult:
        """What it drew; returns when all of the step is done, on the device too."""


@dataclass(frozen=True, slots=True)
class Deferred:
    """The `Pending` of a device that computes where it is asked for the result."""

    run: Callable[[StepBatch], StepResult]
    batch: StepBatch

    def result(self) -> StepResult:
        """Compute it."""
        return self.run(self.batch)


class Runner(Protocol):
    """A device that computes steps over one pool of KV pages.

    Page indices in block tables are below `num_pages`; the scratch page is the runner's own.
    """

    @property
    def layout(self) -> KVLayout:
        """Geometry of the pool."""

    @property
    def num_pages(self) -> int:
        """Usable pages of the pool (without the scratch page)."""

    def run(self, batch: StepBatch) -> StepResult:
        """Compute one step; returns when the sampled tokens are known."""

    def launch(self, batch: StepBatch) -> Pending:
        """Begin a step, so that the caller can do other things before it asks for the result.

        One step at a time; until then no page of the step is given to anybody else.
        """
