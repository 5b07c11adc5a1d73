"""Recorded lengths, the model trained on them, and what it says of requests."""

import json
import math
import random
from pathlib import Path

import msgspec
import pytest

from gateway.features import FEATURES
from gateway.length_model import LengthModel, LengthPredictor, load_predictor
from gateway.length_records import LengthRecord, LengthRecorder, read_records
from gateway.training.trainer import MIN_RECORDS, isotonic, train

AT = {name: index for index, name in enumerate(FEATURES)}


def corpus(num: int, seed: int = 0) -> list[LengthRecord]:
    """Answers that follow what is asked for, a bucket's habit, and half a nat of chance."""
    rng = random.Random(seed)
    habits = [rng.uniform(-0.8, 0.8) for _ in range(16)]
    records = []
    for _ in range(num):
        row = [rng.gauss(0, 1) for _ in FEATURES]
        bucket, max_tokens = rng.randrange(16), rng.choice([64, 256, 2048])
        asked = rng.choice([0, 0, 20, 100, 400])
        row[AT["first_word"]] = float(bucket)
        row[AT["log_asked"]] = math.log1p(asked)
        row[AT["log_max_tokens"]] = math.log1p(max_tokens)
        row[AT["log_table"]] = 4.0 + 0.3 * rng.gauss(0, 1)
        base = math.log(asked * 1.3) if asked else 3.5 + 0.5 * math.sin(row[AT["digits"]])
        length = max(1, round(math.exp(base + habits[bucket] + rng.gauss(0, 0.5))))
        record = LengthRecord(
            features=tuple(row),
            num_tokens=min(length, max_tokens),
            max_tokens=max_tokens,
            is_cut=length > max_tokens,
        )
        records.append(record)
    return records


@pytest.fixture(scope="module")
def trained():
    return train(corpus(3000))


def test_the_model_ranks_far_better_than_the_table(trained) -> None:
    _, report = trained
    assert report.model.tau > 0.5 > 0.1 > report.table_tau
    assert report.model.tau_far > report.model.tau
    assert (report.num_records, report.num_held_out) == (3000, 600 - cut_of(corpus(3000)[2400:]))
    assert report.num_cut == cut_of(corpus(3000))
    assert report.model.q90_missed == pytest.approx(0.1, abs=0.05)
    assert 1 < report.model.p90_under < 4
    assert report.model.mae < 60


def cut_of(records: list[LengthRecord]) -> int:
    return sum(record.is_cut for record in records)


def test_a_second_training_is_the_same(trained) -> None:
    assert train(corpus(3000))[0] == trained[0]


def test_predictions_are_bounded_and_in_order(trained) -> None:
    predictor = LengthPredictor(trained[0])
    rng = random.Random(1)
    for _ in range(300):
        wild = tuple(rng.choice([0.0, 1e300, -1e300, math.nan, rng.gauss(0, 5)]) for _ in FEATURES)
        limit = rng.choice([1, 50, 10**6])
        prediction = predictor.predict(wild, limit)
        assert 0 <= prediction.q50 <= prediction.q90 <= limit
        assert 0 <= prediction.score <= limit
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(prediction), type=type(prediction))
        assert again == prediction


def test_too_few_records_are_refused_with_advice() -> None:
    with pytest.raises(ValueError) as caught:
        train(corpus(MIN_RECORDS - 1))
    assert "199 records" in str(caught.value) and "--record-dir" in str(caught.value)


@pytest.mark.parametrize("is_cut", [False, True])
def test_answers_that_are_all_alike_can_be_trained_on(is_cut: bool) -> None:
    record = LengthRecord(
        features=(0.0,) * len(FEATURES), num_tokens=9, max_tokens=9, is_cut=is_cut
    )
    model, _ = train([record] * MIN_RECORDS)
    assert LengthPredictor(model).predict(record.features, 100).q50 == pytest.approx(9, rel=0.1)


def test_isotonic_is_the_nearest_rising_sequence() -> None:
    assert isotonic([1, 3, 2, 2, 5, 4]) == pytest.approx([1, 7 / 3, 7 / 3, 7 / 3, 4.5, 4.5])
    assert isotonic([3, 2, 1]) == [2, 2, 2]


def test_a_model_outlives_its_file(trained, tmp_path: Path) -> None:
    file = tmp_path / "model.json"
    file.write_bytes(msgspec.json.encode(trained[0]))
    row = corpus(1, seed=5)[0].features
    expected = LengthPredictor(trained[0]).predict(row, 500)
    assert load_predictor(str(file)).predict(row, 500) == expected


def spoil(model: LengthModel, **changes: object) -> bytes:
    return json.dumps({**json.loads(msgspec.json.encode(model)), **changes}).encode()


def test_files_that_do_not_fit_are_refused_with_advice(trained, tmp_path: Path) -> None:
    model = trained[0]
    spoiled = {
        "version 2": spoil(model, tandem_length_model=2),
        "other features": spoil(model, features=["a"]),
        "do not fit": spoil(model, weights=[1.0]),
        "fit each other": spoil(model, q50=sorted(model.q50, reverse=True)),
        "no length predictor": b"\x80\x04pickle",
        "is no length": spoil(model, scales=["NaN"] * len(model.scales)),
    }
    for part, data in spoiled.items():
        file = tmp_path / "model.json"
        file.write_bytes(data)
        with pytest.raises(ValueError) as caught:
            load_predictor(str(file))
        assert part in str(caught.value)
    with pytest.raises(ValueError) as caught:
        load_predictor(str(tmp_path / "none"))
    assert "train-predictor" in str(caught.value)


def test_records_come_back_in_order_and_old_files_go(tmp_path: Path) -> None:
    records = corpus(400)
    recorder = LengthRecorder(tmp_path, "gw", max_file_bytes=20_000)
    neighbour = LengthRecorder(tmp_path, "gw-1")
    neighbour.close()
    for record in records:
        recorder.write(record)
    recorder.close()
    recorder.write(records[0])  # nothing, and no error
    files = [f for f in tmp_path.iterdir() if not f.name.startswith("gw-1-")]
    assert len(files) == 8
    assert all(f.stat().st_mode & 0o777 == 0o600 for f in files)
    assert sum(f.stat().st_size for f in files) < 8 * 22_000
    kept = list(read_records(tmp_path))
    assert 100 < len(kept) < 400
    assert kept == records[-len(kept) :]


def test_an_incomplete_last_line_is_left_out(tmp_path: Path) -> None:
    recorder = LengthRecorder(tmp_path, "gw")
    records = corpus(3)
    for record in records:
        recorder.write(record)
    recorder.close()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    assert list(read_records(file)) == records[:2]


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"hello\n", "holds no length records"),
        (b'{"tandem_length_records":9,"features":[]}\n', "another version"),
    ],
)
def test_other_files_are_no_records(tmp_path: Path, data: bytes, part: str) -> None:
    file = tmp_path / "x.lengths"
    file.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        list(read_records(file))
    assert part in str(caught.value)
    with pytest.raises(ValueError) as caught:
        list(read_records(tmp_path / "missing"))
    assert "missing" in str(caught.value)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError) as caught:
        LengthRecorder(tmp_path / "file" / "folder", "gw")
    assert "record-dir" in str(caught.value)
