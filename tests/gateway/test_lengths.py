"""What the gateway learns from ends, keeps on disk where asked to, and says of requests."""

import dataclasses
import math
from pathlib import Path

import msgspec
import pytest

from gateway.config import GatewayConfig
from gateway.features import FEATURES
from gateway.length_records import LengthRecord, read_records
from gateway.lengths import Lengths, make_lengths
from gateway.training.trainer import train
from tandem.frames import Blob
from tandem.messages.client import Done, Submit
from tandem.messages.common import LengthPrediction, Timeline, Usage
from tests.gateway.ledger_world import new_request

SECRET = "Sesame opens 12 doors"
SUBMIT = Submit(label="x", prompt=Blob(SECRET.encode()), sla_class="batch")


def serve(lengths: Lengths, number: int, num_tokens: int, reason: str = "stop"):
    """A request from its prediction to its end."""
    limit = {"max_tokens": max(num_tokens, 500)}
    new = lengths.predicted(SUBMIT, new_request(number, params=limit))
    usage = Usage(num_prompt_tokens=5, num_output_tokens=num_tokens)
    done = Done(
        request_id=new.request_id, reason=reason, usage=usage, sla_class="batch",
        timeline=Timeline(received_unix_s=1.0), sla_attained=True,
    )  # fmt: skip
    lengths.ended(done)
    lengths.ended(done)  # a second end changes nothing
    return new.prediction


def test_ends_teach_the_table() -> None:
    lengths = Lengths(None, None)
    assert serve(lengths, 1, 40).q50 == 500
    for number in range(2, 60):
        serve(lengths, number, 40)
    assert serve(lengths, 60, 40).q50 == pytest.approx(40, rel=0.1)


def test_failures_teach_nothing_and_cuts_teach_that_answers_are_longer() -> None:
    lengths = Lengths(None, None)
    for number in range(100):
        serve(lengths, number, 3, "failed")
        serve(lengths, 1000 + number, 0, "cancelled")
    assert serve(lengths, 5000, 100).q50 == 500
    for number in range(100):
        serve(lengths, 2000 + number, 30)
        serve(lengths, 3000 + number, 10, "cancelled")
        if number % 2:
            serve(lengths, 4000 + number, 500, "length")
    prediction = serve(lengths, 6000, 30)
    assert prediction.q50 == pytest.approx(30, rel=0.15)
    assert prediction.q90 == 500


def test_records_hold_features_and_lengths_and_no_text(tmp_path: Path) -> None:
    config = GatewayConfig(model="m", record_dir=str(tmp_path / "made"), name="gw")
    lengths = make_lengths(config)
    serve(lengths, 1, 40)
    serve(lengths, 2, 500, "length")
    serve(lengths, 3, 9, "failed")
    lengths.close()
    first, second = read_records(tmp_path / "made")
    assert (first.num_tokens, first.max_tokens, first.is_cut) == (40, 500, False)
    assert (second.num_tokens, second.is_cut) == (500, True)
    assert first.features[FEATURES.index("log_asked")] == pytest.approx(math.log1p(12))
    (file,) = (tmp_path / "made").iterdir()
    data = file.read_bytes().lower()
    for word in (*SECRET.split()[::3], "x", "default"):
        assert f'"{word.lower()}"'.encode() not in data
        assert len(word) < 3 or word.lower().encode() not in data


def test_a_trained_predictor_takes_the_tables_place(tmp_path: Path) -> None:
    row = [0.0] * len(FEATURES)
    at = FEATURES.index("log_asked")
    records = []
    for n in range(600):
        row[at] = math.log1p(n % 30)
        records.append(
            LengthRecord(
                features=tuple(row), num_tokens=10 + 10 * (n % 30), max_tokens=999, is_cut=False
            )
        )
    file = tmp_path / "model.json"
    file.write_bytes(msgspec.json.encode(train(records)[0]))
    lengths = make_lengths(GatewayConfig(model="m", length_predictor=str(file)))
    assert serve(lengths, 1, 5).q50 == pytest.approx(130, rel=0.35)


def test_a_predictor_that_is_none_is_told(tmp_path: Path) -> None:
    file = tmp_path / "model.json"
    file.write_bytes(b"{}")
    with pytest.raises(ValueError) as caught:
        make_lengths(GatewayConfig(model="m", length_predictor=str(file)))
    assert "model.json is no length predictor" in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_the_wire_refuses_predictions_that_are_no_lengths(value: float) -> None:
    good = LengthPrediction(score=1.0, q50=2.0, q90=3.0)
    fields = {f.name: getattr(good, f.name) for f in msgspec.structs.fields(good)}
    for name in ("q50", "q90"):
        data = msgspec.msgpack.encode(list({**fields, name: value}.values()))
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(data, type=LengthPrediction)
    if not value < 0:
        data = msgspec.msgpack.encode(list({**fields, "score": value}.values()))
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(data, type=LengthPrediction)


def test_a_prediction_changes_nothing_else_of_a_request() -> None:
    new = new_request(1)
    predicted = Lengths(None, None).predicted(SUBMIT, new)
    assert dataclasses.replace(predicted, prediction=None) == new
