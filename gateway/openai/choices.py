"""The answers to one call, run in the ledger side by side and heard as one sequence of words.

Answers to the same prompt share its prefill: the first goes ahead, and the others follow when its
first token is there, because the prompt's pages are cached by then.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.http.errors import explain
from gateway.http.services import FromLedger, Stream, Take
from tandem.messages.client import Accepted, Done, Output, Refused, Submit

MAX_OPEN = 64  # of one call at once: a long list must not fill the gateway by itself
MAX_WAITING = 256  # words that nobody has heard yet
Open = Callable[[Submit], Stream]
Word = Accepted | Output | Done


class Choices(Protocol):
    """Answers 0, 1, ... of a call."""

    async def next(self) -> tuple[int, Word] | None:
        """The next word of any; None when all are over. None is lost where the caller is cancelled.
        Raises ApiError where one failed."""

    def divert(self, take: Take) -> None:
        """Where there is one alone, its tokens may go to `take` first, as with `Stream`."""

    def end(self, index: int) -> None:
        """No more of this one is wanted."""

    def close(self) -> None:
        """No more is wanted: cancel what runs. May be called again."""


def start(open_stream: Open, submits: Sequence[Submit], num_per_prompt: int) -> Choices:
    """Enter the requests, `num_per_prompt` for each prompt. Needs a running loop."""
    if len(submits) == 1:
        return OneChoice(open_stream(submits[0]))
    return ManyChoices(open_stream, submits, num_per_prompt)


def heard(word: FromLedger) -> Word:
    """What is no failure. Raises ApiError."""
    if isinstance(word, Refused) or (
        isinstance(word, Done) and word.reason in ("failed", "cancelled")
    ):
        raise explain(word)
    return word


class OneChoice:
    """The usual case, without tasks and queues in between."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._is_over = False

    async def next(self) -> tuple[int, Word] | None:
        """See `Choices`."""
        if self._is_over:
            return None
        word = await self._stream.next()
        self._is_over = isinstance(word, Refused | Done)
        return 0, heard(word)

    def divert(self, take: Take) -> None:
        """See `Choices`."""
        self._stream.divert(take)

    def end(self, index: int) -> None:
        """See `Choices`."""
        self._is_over = True
        self._stream.cancel()

    def close(self) -> None:
        """See `Choices`."""
        self._stream.cancel()


class ManyChoices:
    """Each by a task of its own."""

    def __init__(self, open_stream: Open, submits: Sequence[Submit], num_per_prompt: int) -> None:
        self._open = open_stream
        self._submits = submits
        self._num_per_prompt = num_per_prompt
        self._running = set(range(len(submits)))
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(MAX_OPEN)
        # None wakes a listener: a task failed.
        self._words: asyncio.Queue[tuple[int, FromLedger] | None] = asyncio.Queue(MAX_WAITING)
        self._failure: BaseException | None = None
        for first in range(0, len(submits), num_per_prompt):
            self._start(first)

    async def next(self) -> tuple[int, Word] | None:
        """See `Choices`."""
        while self._running:
            if self._failure is not None:
                raise self._failure
            item = await self._words.get()
            if item is None or item[0] not in self._running:
                continue
            index, word = item
            if isinstance(word, Refused | Done):
                self._running.discard(index)
            return index, heard(word)
        return None

    def divert(self, take: Take) -> None:
        """See `Choices`."""

    def end(self, index: int) -> None:
        """See `Choices`."""
        self._running.discard(index)
        self._tasks[index].cancel()

    def close(self) -> None:
        """See `Choices`."""
        self._running.clear()
        for task in self._tasks.values():
            task.cancel()

    def _start(self, index: int) -> None:
        task = asyncio.create_task(self._run(index))
        self._tasks[index] = task
        task.add_done_callback(self._look_at)

    def _look_at(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        self._failure = task.exception()
        with contextlib.suppress(asyncio.QueueFull):  # a full queue has woken the listener
            self._words.put_nowait(None)

    async def _run(self, index: int) -> None:
        async with self._room:
            stream = self._open(self._submits[index])
            try:
                await self._listen(index, stream)
            finally:
                stream.cancel()

    async def _listen(self, index: int, stream: Stream) -> None:
        is_first = index % self._num_per_prompt == 0
        while True:
            word = await stream.next()
            await self._words.put((index, word))
            if is_first and isinstance(word, Output | Done):
                is_first = False
                for other in range(index + 1, index + self._num_per_prompt):
                    self._start(other)
            if isinstance(word, Refused | Done):
                return
