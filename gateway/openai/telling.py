"""From the ledger's words to what is written: events of a call's answers, and their frames."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from gateway.http.direct import DirectBody
from gateway.http.errors import ApiError
from gateway.openai.choices import Choices, Word
from gateway.openai.chunks import DONE, Tally, error_frame
from gateway.openai.reading import Begun, Ending, Event, Piece, Reader
from tandem.messages.client import Accepted, Done, Output

logger = logging.getLogger(__name__)


class Chunks(Protocol):
    """Frames of a streamed answer; empty where there is nothing to say."""

    def begin(self, index: int, begun: Begun) -> bytes:
        """A choice was accepted."""

    def piece(self, index: int, piece: Piece) -> bytes:
        """More of it."""

    def end(self, index: int, ending: Ending) -> bytes:
        """It is over."""

    def usage(self) -> bytes:
        """All are over."""


class Told(Protocol):
    """What the choices of a call say, in the order in which it comes."""

    async def next(self) -> tuple[int, Event] | None:
        """None when all is said. Raises ApiError."""

    async def settle(self, within_s: float) -> None:
        """Wait until tokens come, for this long at most. Raises ApiError."""

    def go_direct(self, body: DirectBody, chunks: Chunks) -> None:
        """Write tokens to `body` as they come, while `next` waits; all else comes from there."""

    def close(self) -> None:
        """Nobody listens any more."""


class Telling:
    """Reads choices. `readers`: one for each."""

    def __init__(self, choices: Choices, readers: Sequence[Reader], tally: Tally) -> None:
        self._choices = choices
        self._readers = readers
        self._tally = tally
        self._early: deque[tuple[int, Word]] = deque()
        self._ending: tuple[int, Event] | None = None
        self._is_waiting = False
        self._failure: Exception | None = None

    async def next(self) -> tuple[int, Event] | None:
        """See `Told`."""
        if self._ending is not None:
            ending, self._ending = self._ending, None
            return ending
        if self._early:
            return self._event(*self._early.popleft())
        self._is_waiting = True
        try:
            item = await self._choices.next()
        finally:
            self._is_waiting = False
        if self._failure is not None:
            raise self._failure
        return None if item is None else self._event(*item)

    def go_direct(self, body: DirectBody, chunks: Chunks) -> None:
        """See `Told`."""
        if len(self._readers) > 1 or not self._readers[0].is_plain:
            return
        (reader,), tally = self._readers, self._tally

        def take(output: Output) -> bool:
            if not self._is_waiting or self._failure is not None or not body.is_ready:
                return False
            try:
                piece = reader.output(output)
                tally.tokens(len(piece.token_ids))
                body.write(chunks.piece(0, piece))
            except Exception as error:
                logger.exception("tokens cannot be written")
                self._failure = error  # for whoever waits for the next event
                return False
            return True

        self._choices.divert(take)

    def _event(self, index: int, word: Word) -> tuple[int, Event]:
        reader, tally = self._readers[index], self._tally
        if isinstance(word, Accepted):
            tally.prompt(index, word.num_prompt_tokens)
            return index, Begun(word.num_prompt_tokens, f"fp_{word.model_fingerprint[:16]}")
        if isinstance(word, Done):
            tally.ended(index, word.usage)
            return index, reader.done(word)
        piece = reader.output(word)
        tally.tokens(len(piece.token_ids))
        if reader.stop_string is not None:
            self._choices.end(index)
            self._ending = index, reader.end_at_stop()
        return index, piece

    async def settle(self, within_s: float) -> None:
        """See `Told`. A word that comes as the time runs out stays where it is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not any(isinstance(word, Output | Done) for _, word in self._early):
                    item = await self._choices.next()
                    assert item is not None, "an answer has tokens, or an end"
                    self._early.append(item)

    def close(self) -> None:
        """See `Told`."""
        self._choices.close()


class Silence:
    """Answers without tokens of their own, for prompts of these lengths."""

    def __init__(self, prompt_lengths: Sequence[int], tally: Tally) -> None:
        self._events: deque[tuple[int, Event]] = deque()
        for number, length in enumerate(prompt_lengths):
            for index in range(number * tally.num_choices, (number + 1) * tally.num_choices):
                tally.prompt(index, length)
                self._events += [(index, Begun(length)), (index, Ending("length"))]

    async def next(self) -> tuple[int, Event] | None:
        """See `Told`."""
        return self._events.popleft() if self._events else None

    async def settle(self, within_s: float) -> None:
        """See `Told`."""

    def go_direct(self, body: DirectBody, chunks: Chunks) -> None:
        """See `Told`."""

    def close(self) -> None:
        """See `Told`."""


async def frames(told: Told, chunks: Chunks) -> AsyncIterator[bytes]:
    """Of a streamed answer. It always ends with `[DONE]`, after an error, too."""
    try:
        while (event := await told.next()) is not None:
            index, what = event
            match what:
                case Piece():
                    yield chunks.piece(index, what)
                case Begun():
                    if begun := chunks.begin(index, what):
                        yield begun
                case Ending():
                    yield chunks.end(index, what)
    except ApiError as error:
        told.close()
        yield error_frame(error)
    except Exception:  # an error of ours: the caller must not wait for ever
        logger.exception("a stream broke off")
        told.close()
        text = "the gateway failed on this request: its log says why"
        yield error_frame(ApiError(500, text, code="internal"))
    else:
        if usage := chunks.usage():
            yield usage
    yield DONE
