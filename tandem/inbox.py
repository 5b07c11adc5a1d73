"""One stream as its client has it: each token and each character once, however they come. Pure."""

from tandem.messages.client import Done, Output
from tandem.messages.common import TokenLogprobs


class Inbox:
    """Takes a gateway's messages in any order, repeated or with gaps; gives chunks in order.

    Text without tokens is what was held back at the end. It is kept until `Done` or further tokens
    show that it counts, so that a replay, or another gateway, may say it again.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprobs] = []
        self.num_chars = 0
        self._tail: Output | None = None
        self._first_char = 0  # characters that another gateway had said

    @property
    def next_index(self) -> int:
        """The index of the token that comes next."""
        return len(self.ids)

    def take(self, output: Output) -> tuple[Output, ...] | None:
        """Chunks that are next in order now; None where tokens before them are missing."""
        if output.index > self.next_index:
            return None
        if not output.token_ids:
            if output.index == self.next_index:
                self._tail = output
            return ()
        if output.index < self.next_index:
            # A gateway repeats whole pieces only.
            is_known = output.index + len(output.token_ids) <= self.next_index
            return () if is_known else None
        chunks = (output,) if self._tail is None else (self._tail, output)
        for chunk in chunks:
            self._append(chunk)
        return chunks

    def end(self, done: Done) -> tuple[Output, ...] | None:
        """The last chunks; None where something before the end is missing."""
        num_tail = 0 if self._tail is None else len(self._tail.text)
        num_chars = self.num_chars - self._first_char + num_tail
        if done.num_chars is not None and done.num_chars != num_chars:
            return None
        if done.usage.num_output_tokens > self.next_index:
            return None
        return self.end_as_is()

    def end_as_is(self) -> tuple[Output, ...]:
        """What was held back, where nothing more is asked for."""
        chunks = () if self._tail is None else (self._tail,)
        for chunk in chunks:
            self._append(chunk)
        return chunks

    def move(self) -> None:
        """Another gateway goes on after what is here."""
        self._tail, self._first_char = None, self.num_chars

    def _append(self, chunk: Output) -> None:
        self._tail = None
        self.ids.extend(chunk.token_ids)
        self.texts.append(chunk.text)
        self.num_chars += len(chunk.text)
        self.logprobs.extend(chunk.logprobs)
