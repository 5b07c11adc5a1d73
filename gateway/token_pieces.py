"""What single tokens stand for, in bytes: a token may be a part of a character. Pure.

Decoded alone such a part becomes U+FFFD; its bytes are then read off the vocabulary's own spelling.
"""

import re
from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
MAX_REMEMBERED = 65_536
_HEX = re.compile("<0x([0-9A-F]{2})>")  # of a byte that no other entry covers
# Byte-level vocabularies spell each byte as a printable character: those that are printable as
# themselves, the other 68 as the characters from U+0100 on, in the order of the bytes.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF_CHARACTER = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + position): byte for position, byte in enumerate(_OTHERS)
}


class TokenPieces:
    """`decode` gives the text of ids, special tokens included; `spelling` a token's vocabulary
    entry, None for an id that has none. `before` is any token of plain text: some tokenizers drop
    the space of a first word."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        spelling: Callable[[int], str | None],
        before: int,
    ) -> None:
        self._decode = decode
        self._spelling = spelling
        self._before = before
        self._text_before = decode([before])
        self._remembered: dict[int, bytes] = {}

    def bytes_of(self, token_id: int) -> bytes:
        """Empty for an id that stands for nothing."""
        found = self._remembered.get(token_id)
        if found is None:
            found = self._find(token_id)
            if len(self._remembered) < MAX_REMEMBERED:
                self._remembered[token_id] = found
        return found

    def text_of(self, token_id: int) -> str:
        """With U+FFFD for what is no whole character."""
        return self.bytes_of(token_id).decode(errors="replace")

    def _find(self, token_id: int) -> bytes:
        text = self._decode([self._before, token_id])[len(self._text_before) :]
        if REPLACEMENT not in text:
            return text.encode()
        return spelled_bytes(self._spelling(token_id) or "")


def spelled_bytes(spelling: str) -> bytes:
    """The bytes of a part of a character, from its entry in the vocabulary."""
    if match := _HEX.fullmatch(spelling):
        return bytes.fromhex(match[1])
    if all(character in _BYTE_OF_CHARACTER for character in spelling):
        return bytes(_BYTE_OF_CHARACTER[character] for character in spelling)
    return spelling.encode()
