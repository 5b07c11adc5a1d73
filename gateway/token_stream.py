"""The tokens of one request by absolute index: each taken once, in order, however they come. Pure.

Duplicates must be equal to what was accepted; a bounded number of tokens ahead of a gap waits.
"""

from collections.abc import Sequence

from tandem.messages.common import TokenLogprobs

MAX_TOKENS_AHEAD = 4096
# Accepted ids, and their log-probabilities: of all of them, or none.
Taken = tuple[Sequence[int], Sequence[TokenLogprobs]]


class Divergence(ValueError):
    """A node repeated a token index with another token: its stream cannot be trusted."""


class TokenStream:
    """Tokens 0, 1, ... of a request. Not accepted are indices from `limit` on.

    `delivered` are the first tokens, where another gateway has brought them to the client.
    """

    def __init__(self, limit: int, delivered: Sequence[int] = ()) -> None:
        self.ids: list[int] = list(delivered[:limit])
        self._limit = limit
        self._ahead: dict[int, tuple[int, TokenLogprobs | None]] = {}

    @property
    def next_index(self) -> int:
        """The lowest index not yet accepted."""
        return len(self.ids)

    def offer(
        self, start: int, ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()
    ) -> Taken:
        """Tokens that are next in order now; those beyond a gap are kept, those known dropped.

        Raises Divergence where an index comes again with another token.
        """
        known, num = self.ids, len(ids)
        is_next = start == len(known) and not self._ahead and start + num <= self._limit
        if is_next and len(logprobs) in (0, num):  # as nearly all come
            known += ids
            return ids, logprobs
        return self._sort_in(start, ids, logprobs)

    def _sort_in(self, start: int, ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> Taken:
        """The specification of `offer`."""
        for offset, token_id in enumerate(ids):
            index = start + offset
            if index < self.next_index:
                self._compare(index, self.ids[index], token_id)
            elif index in self._ahead:
                self._compare(index, self._ahead[index][0], token_id)
            elif index < min(self._limit, self.next_index + MAX_TOKENS_AHEAD):
                own = logprobs[offset] if offset < len(logprobs) else None
                self._ahead[index] = (token_id, own)
        return self._take()

    def _compare(self, index: int, had: int, came: int) -> None:
        if had != came:
            raise Divergence(f"token {index} was {had} and came again as {came}")

    def _take(self) -> Taken:
        taken: list[tuple[int, TokenLogprobs | None]] = []
        while self.next_index in self._ahead:
            taken.append(self._ahead.pop(self.next_index))
            self.ids.append(taken[-1][0])
        logprobs = [own for _, own in taken if own is not None]
        return [token_id for token_id, _ in taken], logprobs if len(logprobs) == len(taken) else ()

    def cut(self, num_tokens: int) -> None:
        """Forget accepted tokens from index `num_tokens` on: they were not delivered."""
        del self.ids[num_tokens:]

    def drop_ahead(self) -> None:
        """A new attempt starts after the accepted tokens: what waits behind a gap is void."""
        self._ahead.clear()
