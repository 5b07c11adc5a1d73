"""The tokens of one request by absolute index: each taken once, in order, however they come. Pure.

Duplicates must be equal to what was accepted; a bounded number of tokens ahead of a gap waits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tandem.messages.common import TokenLogprobs

MAX_TOKENS_AHEAD = 4096


class Divergence(ValueError):
    """A node repeated a token index with another token: its stream cannot be trusted."""


@dataclass(frozen=True, slots=True)
class Token:
    """One accepted token."""

    token_id: int
    logprobs: TokenLogprobs | None


class TokenStream:
    """Tokens 0, 1, ... of a request. Not accepted are indices from `limit` on.

    `delivered` are the first tokens, where another gateway has brought them to the client.
    """

    def __init__(self, limit: int, delivered: Sequence[int] = ()) -> None:
        self.ids: list[int] = list(delivered[:limit])
        self._limit = limit
        self._ahead: dict[int, Token] = {}

    @property
    def next_index(self) -> int:
        """The lowest index not yet accepted."""
        return len(self.ids)

    def offer(
        self, start: int, ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()
    ) -> list[Token]:
        """Tokens that are next in order now; those beyond a gap are kept, those known dropped.

        Raises Divergence where an index comes again with another token.
        """
        for offset, token_id in enumerate(ids):
            index = start + offset
            if index < self.next_index:
                self._compare(index, self.ids[index], token_id)
            elif index in self._ahead:
                self._compare(index, self._ahead[index].token_id, token_id)
            elif index < min(self._limit, self.next_index + MAX_TOKENS_AHEAD):
                own = logprobs[offset] if offset < len(logprobs) else None
                self._ahead[index] = Token(token_id, own)
        return self._take()

    def _compare(self, index: int, had: int, came: int) -> None:
        if had != came:
            raise Divergence(f"token {index} was {had} and came again as {came}")

    def _take(self) -> list[Token]:
        taken: list[Token] = []
        while self.next_index in self._ahead:
            token = self._ahead.pop(self.next_index)
            self.ids.append(token.token_id)
            taken.append(token)
        return taken

    def cut(self, num_tokens: int) -> None:
        """Forget accepted tokens from index `num_tokens` on: they were not delivered."""
        del self.ids[num_tokens:]

    def drop_ahead(self) -> None:
        """A new attempt starts after the accepted tokens: what waits behind a gap is void."""
        self._ahead.clear()
