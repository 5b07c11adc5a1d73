"""What a client was told of one request, in pieces, for as long as it may be asked again. Pure."""

from bisect import bisect_right

from tandem.messages.client import Output

# What a piece takes beside its text: the message, its tuples, its place here (measured: 380 bytes).
PIECE_BYTES = 400
LOGPROB_BYTES = 120


def size_of(output: Output) -> int:
    """Bytes that a piece takes in memory, about."""
    num_scores = sum(1 + len(scored.top) for scored in output.logprobs)
    return PIECE_BYTES + 8 * len(output.token_ids) + len(output.text) + LOGPROB_BYTES * num_scores


def end_of(output: Output) -> int:
    """The index after a piece's last token."""
    return output.index + len(output.token_ids)


class Backlog:
    """Pieces by position; those before `_acked` are acknowledged, those before `_sent` are sent.

    Acknowledged ones are kept too, up to `keep_bytes`: who lost its memory may start again.
    """

    def __init__(self, keep_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._pieces: list[Output] = []
        self._acked = 0
        self._sent = 0
        self._kept_from = 0  # tokens below this index are forgotten, or never were here
        self.num_bytes = 0
        self.num_unacknowledged_bytes = 0
        self.num_flying_bytes = 0  # sent and not acknowledged

    @property
    def kept_from(self) -> int:
        """The lowest index from which a replay may start."""
        return self._kept_from

    @property
    def is_all_sent(self) -> bool:
        """Whether nothing waits to be sent."""
        return self._sent == len(self._pieces)

    def add(self, output: Output) -> None:
        """The next piece."""
        if not self._pieces:
            self._kept_from = max(self._kept_from, output.index)
        self._pieces.append(output)
        self.num_bytes += size_of(output)
        self.num_unacknowledged_bytes += size_of(output)

    def next_to_send(self, window_bytes: int) -> Output | None:
        """The next piece, unless so many bytes are on their way already; it counts as sent."""
        if self.is_all_sent or self.num_flying_bytes >= window_bytes:
            return None
        piece = self._pieces[self._sent]
        self._sent += 1
        self.num_flying_bytes += size_of(piece)
        return piece

    def acknowledge(self, next_index: int) -> bool:
        """The client has the tokens below `next_index`; whether that is news."""
        before = self._acked
        while self._acked < len(self._pieces):
            piece = self._pieces[self._acked]
            is_in_doubt = not piece.token_ids and next_index <= piece.index
            if end_of(piece) > next_index or is_in_doubt:
                break
            size = size_of(piece)
            self.num_unacknowledged_bytes -= size
            if self._acked < self._sent:
                self.num_flying_bytes -= size
            self._acked += 1
        self._sent = max(self._sent, self._acked)
        is_news = self._acked > before
        if self.num_bytes - self.num_unacknowledged_bytes > self._keep_bytes:
            self.forget_acknowledged(self._keep_bytes // 2)
        return is_news

    def forget_acknowledged(self, keep_bytes: int = 0) -> None:
        """Drop the oldest acknowledged pieces until the rest of them fits."""
        num_gone = 0
        while (
            num_gone < self._acked and self.num_bytes - self.num_unacknowledged_bytes > keep_bytes
        ):
            piece = self._pieces[num_gone]
            self.num_bytes -= size_of(piece)
            self._kept_from = max(end_of(piece), piece.index + 1)  # text without tokens is gone too
            num_gone += 1
        del self._pieces[:num_gone]
        self._acked -= num_gone
        self._sent -= num_gone

    def rewind(self, next_index: int) -> bool:
        """Send again from token `next_index` on; False where that is forgotten.

        Pieces stay whole: the first may begin before it.
        """
        if next_index < self._kept_from:
            return False
        at = bisect_right(self._pieces, next_index, key=end_of)
        while (
            at > 0
            and not self._pieces[at - 1].token_ids
            and end_of(self._pieces[at - 1]) >= (next_index)
        ):
            at -= 1
        self._acked = self._sent = at
        self.num_flying_bytes = 0
        self.num_unacknowledged_bytes = sum(size_of(piece) for piece in self._pieces[at:])
        return True
