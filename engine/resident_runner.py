"""The `node.runner.Runner` of a GPU: rows that stay on the device, captured steps, late results.

`launch` gives the device a step and returns; what was drawn is known in `result`. Steps of decode
rows alone run captured; with a prefill chunk beside them they run over the same rows, uncaptured.
Rows that need more than the largest logit or noise draw in `result`, from the step's logits, as all
rows of the plain runner do. Steps with questions, and those without decode rows, are that runner's.
"""

from dataclasses import dataclass

import torch

from engine.batch import build_batch, padding_row
from engine.decoder import Decoder
from engine.graphs import DecodeGraphs, draw_and_advance
from engine.kv_pool import KVPool
from engine.on_device import on_device
from engine.resident_batch import Draw, ResidentBatch, RowStep
from engine.runner import Sample, TorchRunner
from engine.sampler import NOT_NUMBERS, is_unfiltered
from node.runner import (
    Deferred,
    Pending,
    Sampled,
    SampleRequest,
    SequenceStep,
    StepBatch,
    StepResult,
)
from tandem.layout import KVLayout
from tandem.sampling import NEUTRAL_TEMPERATURE


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A step on the device: decode row i of `sequence_ids` is at `places[i]`; padding follows.

    `logits_rows` are of the sequences that draw, by their index in the batch.
    """

    runner: "ResidentRunner"
    batch: StepBatch
    sequence_ids: list[int]
    places: list[int]
    logits: torch.Tensor
    logits_rows: dict[int, int]
    results: torch.Tensor
    done: torch.cuda.Event | None

    def result(self) -> StepResult:
        """Wait for the step, then draw what it has not drawn itself."""
        return self.runner.finish(self)


class ResidentRunner:
    """One step in flight at a time: its result is asked for before the next is launched."""

    def __init__(
        self,
        plain: TorchRunner,
        decoder: Decoder,
        sample: Sample,
        rows: ResidentBatch,
        graphs: DecodeGraphs,
        device: torch.device,
    ) -> None:
        self._plain = plain
        self._decoder = decoder
        self._sample = sample
        self.rows = rows
        self._graphs = graphs
        self._device = device
        self._is_in_flight = False
        results = torch.empty(rows.results.shape, dtype=torch.int64)
        self._results = results.pin_memory() if device.type == "cuda" else results

    @property
    def layout(self) -> KVLayout:
        """Geometry of the pool."""
        return self._plain.layout

    @property
    def num_pages(self) -> int:
        """Usable pages: the scratch page comes behind them."""
        return self._plain.num_pages

    @property
    def pool(self) -> KVPool:
        """The KV pool, for transports that copy pages."""
        return self._plain.pool

    @property
    def generates(self) -> bool:
        """Whether it draws tokens: a model that only answers questions has no use for this."""
        return self._plain.generates

    def run(self, batch: StepBatch) -> StepResult:
        """Compute one step and draw; returns when all of it is done, on the device too."""
        return self.launch(batch).result()

    def launch(self, batch: StepBatch) -> Pending:
        """Give the device a step; block tables and token ids are not read after this returns."""
        assert not self._is_in_flight, "the result of the step before was not asked for"
        singles = [i for i, s in enumerate(batch.sequences) if len(s.token_ids) == 1]
        num_rows = len(singles) + len(batch.padding_contexts)
        has_questions = any(s.question is not None for s in batch.sequences)
        if has_questions or not 0 < num_rows <= self.rows.max_rows:
            return Deferred(self._plain.run, batch)
        with on_device(self._device), torch.inference_mode():
            in_flight = self._launch(batch, singles)
        self._is_in_flight = True
        return in_flight

    def _launch(self, batch: StepBatch, singles: list[int]) -> _InFlight:
        wanted = [_row_step(i, batch.sequences[i]) for i in singles]
        page_size, scratch_page = self.layout.page_size, self.pool.scratch_page
        for i, context in enumerate(batch.padding_contexts):
            padding = padding_row(context, page_size, scratch_page)
            wanted.append(RowStep(("padding", i), padding, None))
        with_noise = any(row.draw is not None and row.draw.temperature > 0 for row in wanted)
        chunks = [i for i, s in enumerate(batch.sequences) if len(s.token_ids) > 1]
        size = len(wanted) if chunks else self._graphs.size_for(len(wanted))
        places = self.rows.place(wanted, size)
        rows = dict(zip(singles, places, strict=False))
        if chunks:
            beside = tuple(batch.sequences[i] for i in chunks)
            logits, drawing = self._mixed(StepBatch(beside), size, with_noise=with_noise)
            rows |= {chunks[j]: size + i for i, j in enumerate(drawing)}
        else:
            logits = self._graphs.run(size, with_noise=with_noise)
        self.rows.advanced(places)
        rows = {i: row for i, row in rows.items() if batch.sequences[i].sample is not None}
        results = self._results[:size].copy_(self.rows.results[:size], non_blocking=True)
        return _InFlight(self, batch, singles, places, logits, rows, results, self._record())

    def _mixed(
        self, chunks: StepBatch, num_rows: int, *, with_noise: bool
    ) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Decode rows beside chunks, not captured: logits of the rows, then of the chunks drawn."""
        layout, pool = self.layout, self.pool
        flat = build_batch(chunks, layout.page_size, pool.scratch_page, self._device)
        batch = self.rows.beside(num_rows, flat)
        states = self._decoder.states(batch, pool.tensor)
        logits = self._decoder.head(self._decoder.normed(states, batch.sample_rows))
        draw_and_advance(self.rows, logits[:num_rows], with_noise=with_noise)
        return logits, batch.sequence_ids

    def _record(self) -> torch.cuda.Event | None:
        if self._device.type != "cuda":
            return None
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self._device))
        return done

    def finish(self, step: _InFlight) -> StepResult:
        """What a step drew, once it is done on the device."""
        if step.done is not None:
            with on_device(self._device):
                step.done.synchronize()
        self._is_in_flight = False
        sampled: list[Sampled | None] = [None] * len(step.batch.sequences)
        drawn: list[list[int]] = step.results.tolist()
        for place in step.places:
            self.rows.drew(place, drawn[place][0])
        rest: dict[int, SampleRequest] = {}
        place_of = dict(zip(step.sequence_ids, step.places, strict=False))
        for i in step.logits_rows:
            request = step.batch.sequences[i].sample
            assert request is not None
            if i not in place_of or not is_unfiltered(request):
                rest[i] = request
            else:
                token_id, is_finite = drawn[place_of[i]]
                error = None if is_finite else NOT_NUMBERS
                sampled[i] = Sampled(token_id=token_id if is_finite else 0, error=error)
        if rest:
            with on_device(self._device):
                with torch.inference_mode():
                    logits = step.logits[[step.logits_rows[i] for i in rest]]
                results = self._sample(logits, list(rest.values()))
            for i, result in zip(rest, results, strict=True):
                sampled[i] = result
        return StepResult(tuple(sampled))


def _row_step(index: int, step: SequenceStep) -> RowStep:
    """A decode row of the batch; what it cannot draw on the device is dropped there."""
    request = step.sample
    if request is None or request.key is None:
        hint: tuple[object, ...] = ("row", index)
    else:
        hint = (request.key, request.choice)
    if request is None or not is_unfiltered(request):
        return RowStep(hint, step, None)
    temperature = request.params.temperature
    temperature = NEUTRAL_TEMPERATURE if temperature is None else temperature
    draw = Draw(request.seed, request.choice, request.output_index, temperature)
    return RowStep(hint, step, draw)
