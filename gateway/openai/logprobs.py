"""Log-probabilities as chats and completions show them. Pure."""

import codecs
from collections.abc import Callable, Sequence

import msgspec

from tandem.messages.common import TokenLogprobs

BytesOf = Callable[[int], bytes]


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """An alternative."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A token of the answer."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Of a chat's answer."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Of a completion: four lists of equal length. A prompt's first token has no logprob."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class TokenNames:
    """What tokens are called; `as_ids`: `token_id:123`, whatever they stand for.

    `is_hidden` tells of special tokens that the text does not show.
    """

    def __init__(
        self, bytes_of: BytesOf, is_hidden: Callable[[int], bool], *, as_ids: bool
    ) -> None:
        self.bytes_of = bytes_of
        self.is_hidden = is_hidden
        self._as_ids = as_ids

    def in_chat(self, token_id: int) -> str:
        """With U+FFFD for parts of characters: `bytes` stand beside it."""
        if self._as_ids:
            return f"token_id:{token_id}"
        return self.bytes_of(token_id).decode(errors="replace")

    def in_completion(self, token_id: int) -> str:
        """Parts of characters as OpenAI writes them, so that they stay different."""
        if self._as_ids:
            return f"token_id:{token_id}"
        spelled = self.bytes_of(token_id)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def chat_logprobs(
    token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], names: TokenNames
) -> ChatLogprobs:
    """Of these tokens."""
    return ChatLogprobs(
        content=[
            TokenLogprob(
                token=names.in_chat(token_id),
                logprob=own.logprob,
                bytes=list(names.bytes_of(token_id)),
                top_logprobs=[
                    TopLogprob(
                        token=names.in_chat(other),
                        logprob=logprob,
                        bytes=list(names.bytes_of(other)),
                    )
                    for other, logprob in own.top
                ],
            )
            for token_id, own in zip(token_ids, logprobs, strict=False)
        ]
    )


class CompletionScribe:
    """Writes down a choice's logprobs, in pieces; offsets go on from one to the next."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def take(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs | None]
    ) -> CompletionLogprobs:
        """More tokens; None for one that has no logprob."""
        offsets = [self._step(token_id) for token_id in token_ids]
        return CompletionLogprobs(
            text_offset=offsets,
            token_logprobs=[None if own is None else own.logprob for own in logprobs],
            tokens=[self._names.in_completion(token_id) for token_id in token_ids],
            top_logprobs=[
                None if own is None else self._top(token_id, own)
                for token_id, own in zip(token_ids, logprobs, strict=True)
            ],
        )

    def _step(self, token_id: int) -> int:
        """Where a token's text begins, in characters."""
        offset = self._offset
        if not self._names.is_hidden(token_id):
            self._offset += len(self._decoder.decode(self._names.bytes_of(token_id)))
        return offset

    def _top(self, token_id: int, own: TokenLogprobs) -> dict[str, float]:
        """The likeliest of those that are called alike; the token itself is always there."""
        top: dict[str, float] = {}
        for other_id, logprob in own.top:
            top.setdefault(self._names.in_completion(other_id), logprob)
        top.setdefault(self._names.in_completion(token_id), own.logprob)
        return top


def joined(parts: Sequence[CompletionLogprobs]) -> CompletionLogprobs:
    """Pieces as one."""
    return CompletionLogprobs(
        text_offset=[each for part in parts for each in part.text_offset],
        token_logprobs=[each for part in parts for each in part.token_logprobs],
        tokens=[each for part in parts for each in part.tokens],
        top_logprobs=[each for part in parts for each in part.top_logprobs],
    )
