"""Log lines that peers cannot forge or flood: one line each, printable, of bounded length."""

import datetime
import logging
from typing import Any

import msgspec

MAX_LINE_BYTES = 1000
COLOURS = {"WARNING": "33", "ERROR": "31", "CRITICAL": "31", "DEBUG": "2"}


def printable(text: str, max_bytes: int = MAX_LINE_BYTES) -> str:
    """The text with line ends, terminal escapes and the like written as escapes, and cut."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else _escape(c) for c in text[: 2 * max_bytes])
    encoded = text.encode("utf-8", errors="replace")
    if len(encoded) <= max_bytes:
        return text
    return encoded[: max_bytes - 3].decode("utf-8", errors="ignore") + "..."


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class PrintableFormatter(logging.Formatter):
    """Bounds and escapes messages; tracebacks follow on lines that are marked as such."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without a traceback."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: ANN401  logging's type
        """An exception's text may be a peer's: its lines must not look like log lines."""
        lines = super().formatException(ei).splitlines()
        return "\n".join(printable(f"  | {line}") for line in lines)


class TextLines(PrintableFormatter):
    """`INFO 11-21 01:06:07 [decode decode-0] message`; the level in colour for a terminal.

    `member` is the process's role, and its name once that is known.
    """

    def __init__(self, member: str, *, is_coloured: bool = False) -> None:
        super().__init__("%(levelname)s %(asctime)s", "%m-%d %H:%M:%S")
        self.member = member
        self._is_coloured = is_coloured

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without a traceback."""
        head = super().formatMessage(record)
        line = printable(f"{head} [{self.member}] {record.message}")
        colour = COLOURS.get(record.levelname) if self._is_coloured else None
        if colour is None:
            return line
        return f"\x1b[{colour}m{record.levelname}\x1b[0m{line.removeprefix(record.levelname)}"


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, role, name, logger, message, traceback."""

    def __init__(self, member: str) -> None:
        super().__init__()
        self.member = member

    def format(self, record: logging.LogRecord) -> str:
        """The object; texts are cut as lines are."""
        role, _, name = self.member.partition(" ")
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        fields: dict[str, object] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "role": role,
            "name": name,
            "logger": record.name,
            "message": printable(record.getMessage()),
        }
        if record.exc_info:
            lines = self.formatException(record.exc_info).splitlines()
            fields["traceback"] = [printable(line) for line in lines]
        return msgspec.json.encode(fields).decode()
