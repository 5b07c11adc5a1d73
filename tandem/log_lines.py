"""Log lines that peers cannot forge or flood: one line each, printable, of bounded length."""

import logging
from typing import Any

MAX_LINE_BYTES = 1000


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
