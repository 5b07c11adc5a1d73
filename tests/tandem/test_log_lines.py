"""Log lines that peers cannot forge or flood."""

import logging

from hypothesis import given
from hypothesis import strategies as st

from tandem.log_lines import MAX_LINE_BYTES, PrintableFormatter, printable


def test_line_ends_and_terminal_escapes_are_written_out() -> None:
    text = printable("node\n2026 ERROR forged\x1b[31m\x00\u202e \u2028\x9b\r")
    assert text == "node\\n2026 ERROR forged\\x1b[31m\\x00\\u202e \\u2028\\x9b\\r"
    assert printable("übrig ✓") == "übrig ✓"


def test_long_text_is_cut() -> None:
    assert printable("x" * 5000).endswith("x...") and len(printable("x" * 5000)) == MAX_LINE_BYTES
    assert len(printable("\n" * 5000)) == MAX_LINE_BYTES
    assert printable("x" * MAX_LINE_BYTES) == "x" * MAX_LINE_BYTES


@given(st.text(max_size=3000))
def test_any_text_becomes_one_short_line(text: str) -> None:
    line = printable(text)
    assert line.isprintable() and len(line.encode(errors="replace")) <= MAX_LINE_BYTES


def test_the_formatter_keeps_tracebacks() -> None:
    formatter = PrintableFormatter("%(levelname)s %(message)s")
    try:
        raise ValueError("x\n2026 ERROR forged" + "y" * 5000)
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("n", logging.ERROR, "f", 1, "bad %s", ("a\nb",), info)
    first, *rest = formatter.format(record).splitlines()
    assert first == "ERROR bad a\\nb" and rest[0] == "  | Traceback (most recent call last):"
    assert all(line.startswith("  | ") and len(line) <= MAX_LINE_BYTES for line in rest)
