"""Names of special tokens inside what callers write stay plain text, also through a template. Pure.

A chat template writes special tokens and callers' text into one string, in which nobody can tell
whose `<|im_end|>` is whose. So before it runs each such name in the callers' text becomes a number
that nobody can guess (digits only: templates trim, escape and split text, and change its case);
afterwards the string is cut there, and the names are encoded by themselves, as plain text.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

INDEX_DIGITS = 5


class SpecialNames:
    """`names` are those of the tokenizer."""

    def __init__(self, names: Iterable[str]) -> None:
        # Of two names that begin alike the longer one is meant.
        self._names = sorted({name for name in names if name}, key=lambda n: (-len(n), n))
        self._index = {name: index for index, name in enumerate(self._names)}
        self._pattern = re.compile("|".join(map(re.escape, self._names)) or "(?!)")

    def hide(self, value: Any, nonce: str) -> Any:  # noqa: ANN401  JSON
        """JSON in which each name, also within keys, is `nonce` and its index."""
        match value:
            case str():
                return self._pattern.sub(lambda found: self._hidden(found[0], nonce), value)
            case Mapping():
                return {self.hide(k, nonce): self.hide(v, nonce) for k, v in value.items()}
            case list() | tuple():
                return [self.hide(each, nonce) for each in value]
        return value

    def _hidden(self, name: str, nonce: str) -> str:
        return f"{nonce}{self._index[name]:0{INDEX_DIGITS}d}"

    def pieces(self, text: str, nonce: str) -> Iterator[tuple[str, bool]]:
        """What was written around hidden names (False), and these as they were (True)."""
        parts = re.split(f"{nonce}([0-9]{{{INDEX_DIGITS}}})", text)
        for position, part in enumerate(parts):
            if position % 2:
                yield self._names[int(part)], True
            elif part:
                yield part, False
