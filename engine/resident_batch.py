"""The decode rows of a node as tensors that stay on the device from step to step.

A row holds what its sequence computes next (token, position, how to draw) and its block table. A
step advances the rows itself: it writes the drawn token and the next position, so that a sequence
that decodes again needs no word from the host but its new page, every `page_size` tokens. The host
keeps a mirror of what every row holds, compares it with what the next step asks for, and sends what
differs, in one copy. Whatever happened in between (a preemption, other pages, a step that left the
sequence out, one that ran elsewhere) is a difference like any other, so nobody has to tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from engine.batch import Batch
from kernels.decode_rows import (
    NUM_COLUMNS,
    TEMPERATURE,
    TOKEN,
    advance_rows,
    advance_rows_reference,
    begin_rows,
    begin_rows_reference,
)
from node.runner import SequenceStep

UNKNOWN_TOKEN = -1  # drawn on the device, its copy has not arrived
Hint = object  # names a sequence over steps, to find its old row; a wrong one costs a copy


@dataclass(frozen=True, slots=True)
class Draw:
    """How to draw on the device; temperature 0 takes the largest logit."""

    seed: int = 0
    choice: int = 0
    index: int = 0
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class RowStep:
    """What a row is to compute: one token of a sequence; `draw` None: what it draws is dropped."""

    hint: Hint
    step: SequenceStep
    draw: Draw | None


@dataclass(slots=True)
class _Row:
    """What a row of the device holds; `table` are the bytes of its known page indices."""

    hint: Hint
    token: int
    position: int
    draw: Draw
    table: bytes


class ResidentBatch:
    """`max_rows` rows over at most `max_pages` pages each; rows without work are idle.

    An idle row computes position 0 of the scratch page. state [max_rows, NUM_COLUMNS] int64;
    tables [max_rows, max_pages] int32; results [max_rows, 2] int64: the drawn token, and whether
    the largest logit was a finite number.
    """

    def __init__(
        self,
        max_rows: int,
        max_pages: int,
        page_size: int,
        scratch_page: int,
        device: torch.device,
    ) -> None:
        self._page_size = page_size
        self._scratch = np.array([scratch_page], np.int32)
        self._device = device
        self.max_rows = max_rows
        self.max_pages = max_pages
        self.state = torch.zeros(max_rows, NUM_COLUMNS, dtype=torch.int64, device=device)
        self.tables = torch.full((max_rows, max_pages), scratch_page, device=device).int()
        self.results = torch.zeros(max_rows, 2, dtype=torch.int64, device=device)
        self._query_starts = torch.arange(max_rows + 1, dtype=torch.int32, device=device)
        self._sample_rows = torch.arange(max_rows, device=device)
        self._rows = [self._idle() for _ in range(max_rows)]
        self._row_of: dict[Hint, int] = {}
        self.num_sent_rows = 0  # states sent to the device, for tests and benchmarks
        self.num_sent_pages = 0

    def place(self, wanted: Sequence[RowStep], num_rows: int) -> list[int]:
        """Make the first `num_rows` rows those of `wanted`, the rest of them idle; their places.

        Every place is below len(wanted). Nothing of the arguments is read after this returns.
        """
        places = self._places(wanted)
        update = _Update(self.max_pages)
        for place, row_step in zip(places, wanted, strict=True):
            self._set(place, row_step, update)
        for place in range(len(wanted), num_rows):
            self._set_idle(place, update)
        self._send(update)
        return places

    def batch(self, num_rows: int) -> Batch:
        """The first rows as a batch of decode rows; all of it is computed on the device."""
        state, tables = self.state[:num_rows], self.tables[:num_rows]
        begin = begin_rows if state.is_cuda else begin_rows_reference
        positions, page_ids, offsets, context_lens = begin(state, tables, self._page_size)
        return Batch(
            token_ids=state[:, TOKEN],
            positions=positions,
            page_ids=page_ids,
            offsets=offsets,
            block_tables=tables,
            query_starts=self._query_starts[: num_rows + 1],
            context_lens=context_lens,
            sample_rows=self._sample_rows[:num_rows],
            num_decode=num_rows,
            requests=(),
            sequence_ids=(),
        )

    def beside(self, num_rows: int, chunks: Batch) -> Batch:
        """The first rows, then the chunks; wanted are the logits of the rows and of those."""
        rows = self.batch(num_rows)
        width = self.max_pages - chunks.block_tables.shape[1]
        tables = functional.pad(chunks.block_tables, (0, width))
        return Batch(
            token_ids=torch.cat((rows.token_ids, chunks.token_ids)),
            positions=torch.cat((rows.positions, chunks.positions)),
            page_ids=torch.cat((rows.page_ids, chunks.page_ids)),
            offsets=torch.cat((rows.offsets, chunks.offsets)),
            block_tables=torch.cat((rows.block_tables, tables)),
            query_starts=torch.cat((rows.query_starts[:-1], chunks.query_starts + num_rows)),
            context_lens=torch.cat((rows.context_lens, chunks.context_lens)),
            sample_rows=torch.cat((rows.sample_rows, chunks.sample_rows + num_rows)),
            num_decode=num_rows,
            requests=chunks.requests,
            sequence_ids=chunks.sequence_ids,
        )

    def advance(self, token_ids: torch.Tensor, largest: torch.Tensor) -> None:
        """Write what the first rows drew, int64 [n], where the next step and the host find it.

        largest: their largest logits. An idle row stays what it is.
        """
        count = len(token_ids)
        advance = advance_rows if token_ids.is_cuda else advance_rows_reference
        advance(self.state[:count], self.results[:count], token_ids, largest)

    def advanced(self, places: Sequence[int]) -> None:
        """A step with these rows was launched: they hold the tokens that it draws."""
        for place in places:
            row = self._rows[place]
            draw = row.draw
            row.position += 1
            row.token = UNKNOWN_TOKEN
            row.draw = Draw(draw.seed, draw.choice, draw.index + 1, draw.temperature)

    def drew(self, place: int, token_id: int) -> None:
        """The copy of what that step drew has arrived."""
        self._rows[place].token = token_id

    def _places(self, wanted: Sequence[RowStep]) -> list[int]:
        """Where each was before, as far as that is among the first rows; the others fill up."""
        num_rows = len(wanted)
        assert num_rows <= self.max_rows
        taken: dict[int, int] = {}
        for i, row_step in enumerate(wanted):
            place = self._row_of.get(row_step.hint, num_rows)
            if place < num_rows:
                taken.setdefault(place, i)
        places = {i: place for place, i in taken.items()}
        free = (place for place in range(num_rows) if place not in taken)
        return [places[i] if i in places else next(free) for i in range(num_rows)]

    def _set(self, place: int, row_step: RowStep, update: "_Update") -> None:
        step, row = row_step.step, self._rows[place]
        assert len(step.block_table) <= self.max_pages
        draw = row_step.draw or Draw()
        token, table = int(step.token_ids[0]), step.block_table.tobytes()
        if row.hint != row_step.hint:
            self._forget(row.hint, place)
            self._row_of[row_step.hint] = place
        if not row.table.startswith(table):
            first = len(row.table) // 4 if table.startswith(row.table) else 0
            update.pages(place, first, step.block_table[first:])
        else:
            table = row.table
        if (row.token, row.position, row.draw) != (token, step.start, draw) or row.hint is None:
            update.state(place, (token, step.start, 1, draw))
        self._rows[place] = _Row(row_step.hint, token, step.start, draw, table)

    def _set_idle(self, place: int, update: "_Update") -> None:
        row = self._rows[place]
        if row.hint is not None:
            self._forget(row.hint, place)
            update.pages(place, 0, self._scratch)
            update.state(place, (0, 0, 0, Draw()))
            self._rows[place] = self._idle()

    def _forget(self, hint: Hint, place: int) -> None:
        if self._row_of.get(hint) == place:
            del self._row_of[hint]

    def _idle(self) -> _Row:
        return _Row(None, 0, 0, Draw(), self._scratch.tobytes())

    def _send(self, update: "_Update") -> None:
        """Everything in one copy from pinned memory, spread by index on the device."""
        num_rows, num_pages = len(update.rows), sum(map(len, update.page_places))
        if num_rows + num_pages == 0:
            return
        self.num_sent_rows += num_rows
        self.num_sent_pages += num_pages
        sent = torch.from_numpy(update.packed())
        if self._device.type == "cuda":
            sent = sent.pin_memory().to(self._device, non_blocking=True)
        rows, values, pages = sent.split((num_rows, num_rows * NUM_COLUMNS, 2 * num_pages))
        if num_rows:
            self.state.index_copy_(0, rows, values.view(num_rows, NUM_COLUMNS))
        if num_pages:
            places, page_ids = pages.view(2, num_pages)
            self.tables.view(-1).index_copy_(0, places, page_ids.int())


class _Update:
    """What the device is to be told: states of rows, and pages at places of the flat tables."""

    def __init__(self, max_pages: int) -> None:
        self._max_pages = max_pages
        self.rows: list[int] = []
        self._states: list[tuple[int, ...]] = []
        self._temperatures: list[float] = []
        self.page_places: list[NDArray[np.int64]] = []
        self._page_ids: list[NDArray[np.int32]] = []

    def state(self, row: int, state: tuple[int, int, int, Draw]) -> None:
        """A row's token, position, whether it is live, and how it draws."""
        token, position, is_live, draw = state
        seed = draw.seed - (draw.seed >> 63 << 64)
        self.rows.append(row)
        self._states.append((token, position, is_live, seed, draw.choice, draw.index))
        self._temperatures.append(draw.temperature)

    def pages(self, row: int, first: int, page_ids: NDArray[np.int32]) -> None:
        """A row's pages from its `first` on."""
        begin = row * self._max_pages + first
        self.page_places.append(np.arange(begin, begin + len(page_ids)))
        self._page_ids.append(page_ids)

    def packed(self) -> NDArray[np.int64]:
        """Rows, then their states, then places, then pages."""
        states = np.zeros((len(self.rows), NUM_COLUMNS), np.int64)
        if self.rows:
            states[:, :TEMPERATURE] = self._states
            states[:, TEMPERATURE] = np.array(self._temperatures).view(np.int64)
        return np.concatenate(
            (np.array(self.rows, np.int64), states.ravel(), *self.page_places, *self._page_ids)
        )
