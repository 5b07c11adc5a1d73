"""Reads the beginning of a tool call's JSON, and finds where its arguments end. Pure."""

import re
from dataclasses import dataclass

import msgspec

BLANKS = " \t\r\n"
STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
ARGUMENT_KEYS = ('"arguments"', '"parameters"')


@dataclass(frozen=True, slots=True)
class Head:
    """`end` is where the arguments begin, or, without any, where the object has ended."""

    name: str
    end: int
    has_arguments: bool


class NoCallError(ValueError):
    """Whatever follows, the text is something else."""


class _TooShort(Exception):
    """More text is needed to tell."""


def read_head(text: str) -> Head | None:
    """`{"name": "f", "arguments": {` of a call; None while more text may make it one.

    `"type": "function"` may come before. Raises NoCallError.
    """
    try:
        return _read(text)
    except _TooShort:
        return None


def _read(text: str) -> Head:
    at = _literal(text, 0, "{")
    key, at = _string(text, at)
    if key == '"type"':
        value, at = _string(text, _literal(text, at, ":"))
        if value != '"function"':
            raise NoCallError
        key, at = _string(text, _literal(text, at, ","))
    if key != '"name"':
        raise NoCallError
    spelled, at = _string(text, _literal(text, at, ":"))
    try:
        name = msgspec.json.decode(spelled, type=str)
    except msgspec.DecodeError:
        raise NoCallError from None
    at = _blanks(text, at)
    if text[at] == "}":
        return Head(name, at + 1, has_arguments=False)
    key, at = _string(text, _literal(text, at, ","))
    if key not in ARGUMENT_KEYS:
        raise NoCallError
    at = _literal(text, at, ":")
    at = _literal(text, at, "{") - 1
    return Head(name, at, has_arguments=True)


def _blanks(text: str, at: int) -> int:
    """Position of the next character that is none."""
    while at < len(text):
        if text[at] not in BLANKS:
            return at
        at += 1
    raise _TooShort


def _literal(text: str, at: int, wanted: str) -> int:
    at = _blanks(text, at)
    if text[at] != wanted:
        raise NoCallError
    return at + 1


def _string(text: str, at: int) -> tuple[str, int]:
    """A JSON string as it is written, and the position after it."""
    at = _blanks(text, at)
    if text[at] != '"':
        raise NoCallError
    match = STRING.match(text, at)
    if match is None:
        raise _TooShort
    return match[0], match.end()


class ObjectScanner:
    """Finds the end of one JSON object in text that comes in pieces; does not check it."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self.is_over = False

    def push(self, text: str) -> int:
        """How many characters of this piece belong to the object."""
        for at, character in enumerate(text):
            self._take(character)
            if not self._depth:
                self.is_over = True
                return at + 1
        return len(text)

    def _take(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif self._is_in_string:
            self._is_escaped = character == "\\"
            self._is_in_string = character != '"'
        elif character == '"':
            self._is_in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
