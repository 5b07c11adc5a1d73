"""One choice's words from the ledger, as what its caller is to see. Pure.

The ledger cuts the text at stop strings and leaves special tokens out; callers may want either.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec

from gateway.text import Decode, TextStream
from tandem.messages.client import Done, Output
from tandem.messages.common import TokenLogprobs
from tandem.sampling import SamplingParams

Finish = Literal["stop", "length"]


class Piece(msgspec.Struct, frozen=True):
    """More of an answer: tokens, and the text that they complete."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer was accepted. `fingerprint` is the model's."""

    num_prompt_tokens: int
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended; `text` was held back until then. `stop` is the stop string or the stop
    token id that ended it."""

    finish: Finish
    text: str = ""
    stop: str | int | None = None


Event = Begun | Piece | Ending


class Reader:
    """See the module. `spelled_out` decodes with special tokens, where the caller wants them."""

    def __init__(
        self,
        params: SamplingParams,
        eos_token_ids: frozenset[int],
        *,
        includes_stop: bool,
        spelled_out: Decode | None,
    ) -> None:
        self._stop_ids = frozenset(params.stop_token_ids)
        self._includes_stop = includes_stop
        self._spelled: TextStream | None = None
        if spelled_out is not None:
            end_ids = self._stop_ids if params.ignore_eos else self._stop_ids | eos_token_ids
            self._spelled = TextStream(spelled_out, params.stop, end_ids)
        self._last_id: int | None = None
        self.num_tokens = 0
        self.stop_string: str | None = None  # found here, where the ledger cannot see it

    @property
    def is_plain(self) -> bool:
        """Whether the ledger's text is the caller's, so that nothing can end here."""
        return self._spelled is None

    def output(self, output: Output) -> Piece:
        """The ledger's tokens. None are to be given once `stop_string` is set."""
        ids = output.token_ids
        if ids:
            self._last_id = ids[-1]
            self.num_tokens += len(ids)
        if self._spelled is None:
            return Piece(output.text, ids, output.logprobs)
        text = ""
        for position, token_id in enumerate(ids):
            piece, self.stop_string = self._spelled.push(token_id)
            text += piece
            if self.stop_string is not None:
                self.num_tokens -= len(ids) - position - 1
                return Piece(text, ids[: position + 1], output.logprobs[: position + 1])
        return Piece(text, ids, output.logprobs)

    def end_at_stop(self) -> Ending:
        """The end, where `stop_string` was found here."""
        assert self.stop_string is not None
        text = self.stop_string if self._includes_stop else ""
        return Ending("stop", text, self.stop_string)

    def done(self, done: Done) -> Ending:
        """The ledger's end of an answer that did not fail."""
        assert done.reason in ("stop", "length"), "what failed is no answer"
        finish: Finish = "stop" if done.reason == "stop" else "length"
        text, stop = "", done.stop_string
        if self._spelled is not None and stop is None:
            text, stop = self._spelled.flush()
        if stop is not None:
            return Ending("stop", text + (stop if self._includes_stop else ""), stop)
        if finish == "stop" and self._last_id in self._stop_ids:
            return Ending(finish, text, self._last_id)
        return Ending(finish, text)
