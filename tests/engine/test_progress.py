"""Loading weights is shown: a bar on a terminal, lines elsewhere."""

import logging
import sys

import pytest

from engine import progress
from engine.progress import LoadProgress


def test_a_line_for_every_tenth(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    show = LoadProgress()
    with caplog.at_level(logging.INFO, "tandem.node"):
        for done in range(0, 1001, 35):
            show(done * 10**6, 10**9)
        show(10**9, 10**9)
    percents = [int(record.message.split()[2]) for record in caplog.records]
    assert percents[-1] == 100 and len(percents) == 10
    assert [percent // 10 for percent in percents] == list(range(1, 11))
    assert caplog.records[-1].message == "loading weights: 100 % of 1.0 GB"


def test_what_is_quick_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tandem.node"):
        LoadProgress()(10, 10)
    assert caplog.records == []


def test_a_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    show = LoadProgress()
    show(5, 10)
    show(10, 10)
    text = capsys.readouterr().err
    assert "loading weights: 100%" in text and text.endswith("\n")
