"""Token ids to text while they arrive: whole characters only, cut at stop strings. Pure.

What is pushed token by token adds up to the text of all tokens decoded at once.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
# The text of a token that has the same wherever it stands; None for others.
Whole = Callable[[int], str | None]

REPLACEMENT = "\ufffd"
# A character has at most four bytes, so of four tokens; a longer undecodable run is really invalid.
MAX_HELD_TOKENS = 32
# What another gateway delivered is decoded in blocks, and only the end of it token by token.
BLOCK_TOKENS = 256


class Detokenizer:
    """Decodes a short window twice per token (the offsets known from TGI and vLLM).

    The text of a token depends on its neighbours (spaces, characters of several tokens), so the
    window starts one settled token earlier, and what already was text is subtracted. Where nothing
    is held back and `whole` knows the token, neither is needed: 0.3 us in place of 5.
    """

    def __init__(self, decode: Decode, whole: Whole | None = None) -> None:
        self._decode = decode
        self._whole = whole
        self._last_whole: int | None = None  # the last token, where it came that way
        self._window: list[int] = []
        self._num_settled = 0  # tokens at the window's start whose text is out
        self._num_waits = 0  # pushes since then
        self._settled_text = ""  # text of those, decoded alone
        self._num_given = 0  # characters beyond it that are out already

    def push(self, token_id: int) -> str:
        """The text that this token completes."""
        if self._whole is not None and (self._last_whole is not None or self._holds_nothing):
            text = self._whole(token_id)
            if text is not None:
                self._last_whole = token_id
                return text
        return self.push_block([token_id])

    @property
    def _holds_nothing(self) -> bool:
        return self._num_waits == 0 and self._num_given == 0

    def _open_window(self, last: int) -> None:
        """Make the window what it is after this token."""
        self._last_whole, self._window = None, [last]
        self._num_settled, self._num_given, self._num_waits = 1, 0, 0
        self._settled_text = self._decode(self._window)

    def push_block(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete, decoded together."""
        if self._last_whole is not None:
            self._open_window(self._last_whole)
        self._window += token_ids
        self._num_waits += 1
        text = self._decode(self._window)
        # A character that is not complete yet shows as one or more trailing marks.
        stable = text.rstrip(REPLACEMENT)
        is_overdue = self._num_waits > MAX_HELD_TOKENS
        is_settled = len(stable) == len(text) > len(self._settled_text)
        start = len(self._settled_text) + self._num_given
        new = (text if is_overdue else stable)[start:]
        if is_settled or is_overdue:
            self._slide()
        else:
            self._num_given += len(new)
        return new

    def _slide(self) -> None:
        """Keep the tokens since the last settled point as the context of the next ones."""
        self._window = self._window[self._num_settled :]
        self._num_settled = len(self._window)
        self._settled_text = self._decode(self._window)
        self._num_given = 0
        self._num_waits = 0

    def flush(self) -> str:
        """What was held back; call it once, at the end."""
        if self._last_whole is not None:
            return ""
        text = self._decode(self._window) if self._window else ""
        return text[len(self._settled_text) + self._num_given :]


class StopScanner:
    """Holds back what may become a stop string, and cuts the text before the first that does.

    First is the one that is complete first, whatever the pieces in which the text comes.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self._longest = max((len(stop) for stop in stops), default=0)

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that is safe to show, and the stop string that ended it, if any."""
        text = self._held + text
        found = [(at + len(s), at, s) for s in self._stops if (at := text.find(s)) >= 0]
        if found:
            _, at, stop = min(found)
            self._held = ""
            return text[:at], stop
        num_held = self._num_to_hold(text)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held], None

    def _num_to_hold(self, text: str) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            end = text[len(text) - length :]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0

    def flush(self) -> str:
        """What was held back and never became a stop string."""
        held, self._held = self._held, ""
        return held


class TextStream:
    """A request's text: tokens in, characters out, until a stop string."""

    def __init__(
        self,
        decode: Decode,
        stops: Sequence[str],
        end_ids: frozenset[int],
        whole: Whole | None = None,
    ) -> None:
        """Tokens of `end_ids` end a request and have no text."""
        self._detokenizer = Detokenizer(decode, whole)
        self._scanner = StopScanner(stops) if stops else None
        self._end_ids = end_ids
        self._num_to_skip = 0  # characters that the client has already

    def resume(self, token_ids: Sequence[int], num_chars: int) -> tuple[str, str | None]:
        """Take tokens and text that another gateway delivered; returns what `push` does.

        That gateway may have held text back that is shown here, or shown text at the end that is
        held back here: what follows starts after `num_chars` characters in either case.
        """
        self._num_to_skip = num_chars
        ids = [token_id for token_id in token_ids if token_id not in self._end_ids]
        end = max(0, len(ids) - 2 * MAX_HELD_TOKENS)
        blocks = [ids[at : min(at + BLOCK_TOKENS, end)] for at in range(0, end, BLOCK_TOKENS)]
        pieces = [self._detokenizer.push_block(block) for block in blocks]
        pieces += [self._detokenizer.push(token_id) for token_id in ids[end:]]
        return self._show("".join(pieces))

    def push(self, token_id: int) -> tuple[str, str | None]:
        """The text to show now, and the stop string that ends the request, if any."""
        if token_id in self._end_ids:
            return "", None
        text = self._detokenizer.push(token_id)
        if self._scanner is None and not self._num_to_skip:
            return text, None
        return self._show(text)

    def _show(self, text: str) -> tuple[str, str | None]:
        shown, stop = (text, None) if self._scanner is None else self._scanner.push(text)
        return self._skip(shown), stop

    def _skip(self, text: str) -> str:
        num_skipped = min(self._num_to_skip, len(text))
        self._num_to_skip -= num_skipped
        return text[num_skipped:]

    def flush(self) -> tuple[str, str | None]:
        """What was held back, at the end of the tokens."""
        text, stop = self._detokenizer.flush(), None
        if self._scanner is not None:
            text, stop = self._scanner.push(text)
            text += "" if stop is not None else self._scanner.flush()
        return self._skip(text), stop
