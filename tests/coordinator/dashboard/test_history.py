"""What operators see survives restarts; a bad file costs its past, never the coordinator."""

import os
import sqlite3
import stat
import time
from pathlib import Path

import pytest

from coordinator.dashboard import history_tables
from coordinator.dashboard.history import History


def save(world, path: Path) -> None:
    """Write what the observer has to the file, as a coordinator does until it ends."""
    history = History(path)
    history.write(world.observer.take_batch())
    history.close()


def reopened(make_world, path: Path, world):
    """Another coordinator's observer, at the same time, with the file."""
    again = make_world()
    again.offset_s = world.unix_s - again.cluster.now
    history = History(path)
    again.observer.restore(history.take_kept())
    history.close()
    return again


def test_three_days_survive_a_restart(make_world, tmp_path: Path) -> None:
    """With two days between the requests, under a clock that is set."""
    world, path = make_world(), tmp_path / "history.sqlite"
    for number in range(40):
        world.serve(number, sla_attained=number % 4 != 0)
    world.seconds(2)
    world.cluster.now += 2 * 86_400.0
    for number in range(40, 50):
        world.serve(number)
    world.seconds(12)
    before, before_window = world.snapshot(), world.observer.series("1h", world.unix_s)
    save(world, path)
    again = reopened(make_world, path, world)
    after = again.snapshot()
    for old, new in zip(before.classes, after.classes, strict=True):
        assert new.windows == old.windows
        assert new.budget_left == old.budget_left
    standard = {each.sla_class: each for each in after.classes}["standard"]
    assert standard.windows["3d"].num_ended == 50
    assert standard.windows["1h"].num_ended == 10
    assert standard.verdict == "ok" and standard.budget_left == pytest.approx(1 - 0.2 / 0.05)
    window = again.observer.series("1h", again.unix_s)
    assert window.values["goodput_per_s"] == before_window.values["goodput_per_s"]
    assert (window.values["goodput_per_s"][0] or 0) >= 1.0  # ten within ten seconds
    known = [event.text for event in again.observer.events.after(0)]
    assert any("node p0 joined" in text for text in known)
    assert again.texts(49) == world.texts(49)
    assert again.texts(3) == world.texts(3)


def test_a_report_that_is_repeated_after_a_restart_counts_once(make_world, tmp_path: Path) -> None:
    world, path = make_world(), tmp_path / "history.sqlite"
    world.serve(1)
    save(world, path)
    again = reopened(make_world, path, world)
    again.cluster.end(1)
    standard = {each.sla_class: each for each in again.snapshot().classes}["standard"]
    assert standard.windows["5m"].num_ended == 1


def test_what_is_written_again_replaces_what_was(make_world, tmp_path: Path) -> None:
    world, path = make_world(), tmp_path / "history.sqlite"
    history = History(path)
    for number in range(5):
        world.serve(number)
        history.write(world.observer.take_batch())
    history.close()
    again = reopened(make_world, path, world)
    standard = {each.sla_class: each for each in again.snapshot().classes}["standard"]
    assert standard.windows["3d"].num_ended == 5
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["history.sqlite"]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)


def from_the_future(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def bad_json(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO samples VALUES (10, 1.0, 'no json')")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (damage, "corrupt"),
        (from_the_future, "newer"),
        (bad_json, "corrupt"),
        (lambda path: path.write_text("a poem, long enough to be no header of SQLite"), "corrupt"),
    ],
)
def test_a_file_that_cannot_be_used_goes_aside(make_world, tmp_path: Path, spoil, word) -> None:
    world, path = make_world(), tmp_path / "history.sqlite"
    for number in range(30):
        world.serve(number)
    save(world, path)
    spoil(path)
    history = History(path)
    note = history.notes.get_nowait()
    world.serve(99)
    history.write(world.observer.take_batch())
    history.close()
    assert f"history.sqlite.{word}-" in note and "a new one begins" in note
    assert len(list(tmp_path.glob(f"history.sqlite.{word}-*"))) == 1
    again = reopened(make_world, path, world)
    assert isinstance(again.observer.records.find(f"{99:032x}"), bytes)


def test_places_where_no_file_can_be_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot keep a history in .*No such file"):
        History(tmp_path / "no" / "history.sqlite")
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE accounts (id INTEGER)")
    connection.close()
    with pytest.raises(ValueError, match="database of another program"):
        History(other)
    assert other.exists()


def test_old_and_superfluous_rows_are_dropped(
    make_world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_tables, "MAX_RECORDS", 20)
    world, path = make_world(), tmp_path / "history.sqlite"
    world.offset_s = time.time() - 4 * 86_400 - world.cluster.now
    for number in range(10):
        world.serve(number)
    world.seconds(2)
    world.cluster.now += 4 * 86_400
    for number in range(10, 50):
        world.cluster.now += 0.01
        world.serve(number)
    save(world, path)
    with sqlite3.connect(path) as connection:
        history_tables.forget(connection, world.unix_s)
        counts = {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("records", "buckets", "samples")
        }
    connection.close()
    assert counts == {"records": 21, "buckets": 2, "samples": 0}


def test_a_full_disk_is_said_once_and_serving_goes_on(
    make_world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()

    def full(connection, batch) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("coordinator.dashboard.history.write", full)
    history = History(tmp_path / "history.sqlite")
    for number in range(3):
        world.serve(number)
        history.write(world.observer.take_batch())
    history.close()
    assert "disk is full" in history.notes.get_nowait()
    assert history.notes.empty()
