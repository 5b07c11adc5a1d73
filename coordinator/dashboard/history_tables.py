"""The tables of a history file, and how batches go in and come out."""

import sqlite3
from collections.abc import Iterator

import msgspec

from coordinator.dashboard.event_book import MAX_EVENTS
from coordinator.dashboard.observer import Batch
from coordinator.dashboard.records import MAX_RECORDS, Kept
from coordinator.dashboard.series import KEPT as KEPT_SAMPLES
from coordinator.dashboard.series import STEPS_S, Values
from coordinator.dashboard.windows import KEPT as KEPT_BUCKETS
from coordinator.dashboard.windows import TALLY_FIELDS
from tandem.messages.operations import WINDOWS_S, Event

APPLICATION_ID = 0x54444D48  # TDMH
SCHEMA_VERSION = 1
_TALLY = ", ".join(f"{name} REAL NOT NULL" for name in TALLY_FIELDS)
SCHEMA = f"""
BEGIN;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE IF NOT EXISTS buckets (
    sla_class TEXT NOT NULL, step_s INTEGER NOT NULL, start_s INTEGER NOT NULL, {_TALLY},
    PRIMARY KEY (sla_class, step_s, start_s)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS samples (
    step_s INTEGER NOT NULL, unix_s REAL NOT NULL, body BLOB NOT NULL, PRIMARY KEY (step_s, unix_s)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, unix_s REAL NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS records (
    request_id TEXT PRIMARY KEY, unix_s REAL NOT NULL, outcome TEXT NOT NULL,
    sla_class TEXT NOT NULL, is_missed INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS records_by_time ON records (unix_s);
COMMIT;
"""
LONGEST_S = max(WINDOWS_S.values())
_BUCKETS = f"INSERT OR REPLACE INTO buckets VALUES (?, ?, ?{', ?' * len(TALLY_FIELDS)})"
_VALUES: msgspec.json.Decoder[Values] = msgspec.json.Decoder(dict[str, float | None])


def write(connection: sqlite3.Connection, batch: Batch) -> None:
    """Add a batch, as a whole or not at all."""
    if not (batch.buckets or batch.samples or batch.events or batch.records):
        return
    connection.execute("BEGIN")
    try:
        connection.executemany(
            _BUCKETS, [(name, step, start, *row) for name, step, start, row in batch.buckets]
        )
        connection.executemany(
            "INSERT OR REPLACE INTO samples VALUES (?, ?, ?)",
            [(step, at, msgspec.json.encode(values)) for step, at, values in batch.samples],
        )
        connection.executemany(
            "INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?)",
            [(each.number, each.unix_s, each.kind, each.text) for each in batch.events],
        )
        connection.executemany(
            "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?)",
            [
                (name, at, each.outcome, each.sla_class, each.is_missed, each.data)
                for name, at, each in batch.records
            ],
        )
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def read_all(connection: sqlite3.Connection) -> Batch:
    """Everything, oldest first."""
    return Batch(
        buckets=list(_buckets(connection)),
        samples=[
            (step_s, unix_s, _VALUES.decode(body))
            for step_s, unix_s, body in connection.execute(
                "SELECT step_s, unix_s, body FROM samples ORDER BY step_s, unix_s"
            )
        ],
        events=[
            Event(number=number, unix_s=unix_s, kind=kind, text=text)
            for number, unix_s, kind, text in connection.execute(
                "SELECT number, unix_s, kind, text FROM events ORDER BY number"
            )
        ],
        records=[
            (name, unix_s, Kept(bytes(body), outcome, sla_class, bool(is_missed)))
            for name, unix_s, outcome, sla_class, is_missed, body in connection.execute(
                "SELECT request_id, unix_s, outcome, sla_class, is_missed, body FROM records "
                "ORDER BY unix_s"
            )
        ],
    )


def _buckets(connection: sqlite3.Connection) -> Iterator[tuple[str, int, int, tuple[float, ...]]]:
    names = ", ".join(TALLY_FIELDS)
    query = f"SELECT sla_class, step_s, start_s, {names} FROM buckets ORDER BY start_s"
    for sla_class, step_s, start_s, *row in connection.execute(query):
        yield sla_class, step_s, start_s, tuple(row)


def forget(connection: sqlite3.Connection, unix_s: float) -> None:
    """Drop what no window shows any more, and what is too much."""
    for step_s, window in KEPT_BUCKETS.items():
        oldest = unix_s - WINDOWS_S[window] - step_s
        connection.execute("DELETE FROM buckets WHERE step_s = ? AND start_s < ?", (step_s, oldest))
    for window in KEPT_SAMPLES:
        connection.execute(
            "DELETE FROM samples WHERE step_s = ? AND unix_s < ?",
            (STEPS_S[window], unix_s - WINDOWS_S[window]),
        )
    for table, most in (("events", MAX_EVENTS), ("records", MAX_RECORDS)):
        connection.execute(f"DELETE FROM {table} WHERE unix_s < ?", (unix_s - LONGEST_S,))
        connection.execute(
            f"DELETE FROM {table} WHERE unix_s < "
            f"(SELECT unix_s FROM {table} ORDER BY unix_s DESC LIMIT 1 OFFSET ?)",
            (most,),
        )
