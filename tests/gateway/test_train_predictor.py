"""The command that trains a predictor, as an operator starts it."""

import json
from pathlib import Path

import pytest

from gateway.features import FEATURES
from gateway.length_model import load_predictor
from gateway.length_records import LengthRecord, LengthRecorder
from tandem.cli import main


def record(folder: Path, num: int) -> None:
    recorder = LengthRecorder(folder, "gw")
    for n in range(num):
        row = [float(n % 7)] * len(FEATURES)
        recorder.write(
            LengthRecord(
                features=tuple(row), num_tokens=20 * (1 + n % 7), max_tokens=500, is_cut=False
            )
        )
    recorder.close()


def test_records_become_a_file_and_a_report(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "records", 400)
    out = tmp_path / "lengths.json"
    assert main(["train-predictor", str(tmp_path / "records"), "--out", str(out)]) == 0
    text = capfd.readouterr().out
    report = json.loads(text.splitlines()[-1])
    assert report["num_records"] == 400
    assert report["model"]["tau"] == pytest.approx(1, abs=0.01)
    assert "Kendall's tau" in text
    short, long = (
        load_predictor(str(out)).predict((float(n),) * len(FEATURES), 500) for n in (0, 6)
    )
    assert short.q50 < 60 < 100 < long.q50


def test_what_cannot_be_trained_on_says_why(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "records", 20)
    out = tmp_path / "lengths.json"
    assert main(["train-predictor", str(tmp_path / "records"), "--out", str(out)]) == 1
    assert "20 records are too few" in capfd.readouterr().err
    assert not out.exists()
