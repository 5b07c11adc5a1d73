"""What all streamed and whole answers share: who answers, token counts, frames. Pure."""

from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET, UnsetType

from gateway.http.errors import ApiError
from gateway.openai.answers import PromptTokensDetails, Usage
from gateway.openai.logprobs import TokenNames
from tandem.messages.common import Usage as CountedUsage

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Head:
    """The same in all chunks of an answer."""

    answer_id: str
    created: int
    model: str
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """What a caller wants beside the text. `names`: None without logprobs."""

    names: TokenNames | None = None
    returns_token_ids: bool = False
    includes_usage: bool = False
    has_continuous_usage: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether chunks differ in their text alone."""
        return self.names is None and not self.returns_token_ids and not self.has_continuous_usage


@dataclass(slots=True)
class Tally:
    """Counts a call's tokens; each prompt once, by the first of its `num_choices` answers."""

    num_choices: int = 1
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    _has_counted: set[int] = field(default_factory=set)

    def prompt(self, index: int, num_tokens: int) -> None:
        """The prompt of answer `index` is known."""
        number = index // self.num_choices
        if number not in self._has_counted:
            self._has_counted.add(number)
            self.num_prompt_tokens += num_tokens

    def tokens(self, num_tokens: int) -> None:
        """Tokens of an answer came."""
        self.num_output_tokens += num_tokens

    def ended(self, index: int, usage: CountedUsage) -> None:
        """An answer is over. The other answers to its prompt find it in the cache by design."""
        if index % self.num_choices == 0:
            self.num_cached_tokens += usage.num_cached_tokens

    def usage(self) -> Usage:
        """The counts so far."""
        return Usage(
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=self.num_output_tokens,
            total_tokens=self.num_prompt_tokens + self.num_output_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self.num_cached_tokens),
        )


def usage_within(shape: Shape, tally: Tally) -> Usage | UnsetType | None:
    """`usage` of a chunk that is not the last."""
    if not shape.includes_usage:
        return UNSET
    return tally.usage() if shape.has_continuous_usage else None


class TextFrames:
    """Frames of one choice that differ in one text alone: encoded once, but for the text.

    `empty` is the frame whose field `name` is the empty text; no text within JSON can look like it.
    """

    __slots__ = ("_after", "_before")

    def __init__(self, empty: bytes, name: str) -> None:
        key = b'"%b":' % name.encode()
        before, found, self._after = empty.partition(key + b'""')
        assert found, "the frame has the field"
        self._before = before + key

    def frame(self, text: str) -> bytes:
        """The same as encoding the whole."""
        return self._before + msgspec.json.encode(text) + self._after


def frame(value: msgspec.Struct) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def error_frame(error: ApiError) -> bytes:
    """A failure after the stream began: clients raise it."""
    return b"data: " + msgspec.json.encode(error.body) + b"\n\n"
