"""Log lines that peers cannot forge or flood."""

import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.config import CoordinatorConfig
from tandem.log_lines import MAX_LINE_BYTES, JsonLines, PrintableFormatter, TextLines, printable
from tandem.service import Log


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


def make_record(message: str = "bad %s", level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("tandem.node", level, "f", 1, message, ("a\nb",), None)


def test_a_line_names_role_and_node() -> None:
    line = TextLines("decode decode-0").format(make_record())
    assert re.fullmatch(r"INFO \d\d-\d\d \d\d:\d\d:\d\d \[decode decode-0\] bad a\\nb", line)


def test_the_level_is_coloured_for_a_terminal_only() -> None:
    record = make_record(level=logging.WARNING)
    assert "\x1b" not in TextLines("gateway").format(record)
    assert (
        TextLines("gateway", is_coloured=True).format(record).startswith("\x1b[33mWARNING\x1b[0m ")
    )
    assert "\x1b" not in TextLines("gateway", is_coloured=True).format(make_record())


def test_json_lines_are_objects() -> None:
    try:
        raise ValueError("x\nERROR forged")
    except ValueError:
        info = sys.exc_info()
    record = make_record()
    record.exc_info = info
    line = JsonLines("decode decode-0").format(record)
    fields = json.loads(line)
    assert "\n" not in line and fields["message"] == "bad a\\nb"
    assert (fields["level"], fields["role"], fields["name"]) == ("INFO", "decode", "decode-0")
    assert fields["logger"] == "tandem.node" and fields["time"].endswith("+00:00")
    assert fields["traceback"][0].startswith("Traceback")


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """As it was, afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def test_the_config_is_logged_for_debugging(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    root_logger.handlers.clear()  # pytest's
    log = Log(CoordinatorConfig(log_level="debug"), "coordinator")
    log.name("c0")
    root_logger.info("hello")
    lines = capsys.readouterr().err.splitlines()
    assert any(line.endswith("[coordinator] config: port = 7300") for line in lines)
    assert lines[-1].endswith("[coordinator c0] hello") and lines[-1].startswith("INFO ")
