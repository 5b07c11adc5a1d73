"""What the dashboard shows, kept in an SQLite file over restarts: written by a thread of its own.

A file that cannot be read, or that a newer version wrote, is renamed aside: the coordinator serves
all the same. Nothing here is needed to serve requests.
"""

import logging
import os
import queue
import sqlite3
import threading
import time
from pathlib import Path

import msgspec

from coordinator.dashboard.history_tables import (
    APPLICATION_ID,
    SCHEMA,
    SCHEMA_VERSION,
    forget,
    read_all,
    write,
)
from coordinator.dashboard.observer import Batch

MAX_BATCHES = 60  # a disk that stands still for a minute loses what comes after
FORGET_S = 60.0
MAX_FILE_BYTES = 256 << 20
PAGE_BYTES = 4096
CLOSE_S = 10.0
logger = logging.getLogger(__name__)


class History:
    """An open file. `notes` say what is wrong with it, for the event log."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError for a place where no file can be, and for a file of others."""
        self.notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._path = path
        self._kept: Batch | None = self._open()
        self._batches: queue.Queue[Batch | None] = queue.Queue(MAX_BATCHES)
        self._is_behind = False
        self._writer = threading.Thread(target=self._write_all, name="history", daemon=True)
        self._writer.start()

    def take_kept(self) -> Batch:
        """What the file had when it was opened; to be asked once."""
        kept, self._kept = self._kept, None
        assert kept is not None, "asked once"
        return kept

    def write(self, batch: Batch) -> None:
        """Keep what changed; never waits."""
        try:
            self._batches.put_nowait(batch)
            self._is_behind = False
        except queue.Full:
            if not self._is_behind:
                self.notes.put(f"the history {self._path} is a minute behind: what comes is lost")
            self._is_behind = True

    def close(self) -> None:
        """Write what is left, for so long as that takes a disk that works."""
        try:
            self._batches.put(None, timeout=CLOSE_S)
        except queue.Full:
            logger.error("the history %s was not written to its end", self._path)
            return
        self._writer.join(CLOSE_S)

    def _open(self) -> Batch:
        """What the file has, or an empty one in its place."""
        try:
            return self._read()
        except _Unusable as error:
            aside = Path(f"{self._path}.{error.word}-{int(time.time())}")
            text = f"the history {self._path} {error}: it is {aside} now, and a new one begins"
        try:
            for suffix in ("", "-wal", "-shm"):
                old = Path(f"{self._path}{suffix}")
                if old.exists():
                    old.rename(f"{aside}{suffix}")
            batch = self._read()
        except (_Unusable, OSError) as error:
            raise ValueError(f"cannot keep a history in {self._path}: {error}") from None
        self.notes.put(text)
        return batch

    def _read(self) -> Batch:
        _make_private(self._path)
        connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            self._prepare(connection)
            return read_all(connection)
        except (sqlite3.DatabaseError, msgspec.MsgspecError, TypeError, UnicodeError) as error:
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                text = f"another process uses the history {self._path}: name another file"
                raise ValueError(text) from None
            raise _Unusable("corrupt", f"cannot be read ({error})") from None
        finally:
            connection.close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Check whose file it is, and make its tables where it is new."""
        connection.execute("PRAGMA busy_timeout = 2000")
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        num_tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if num_tables and application != APPLICATION_ID:
            raise ValueError(f"{self._path} is a database of another program: name another file")
        if version > SCHEMA_VERSION:
            raise _Unusable("newer", f"was written by a newer version ({version})")
        if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise _Unusable("corrupt", "is damaged")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(SCHEMA)

    def _write_all(self) -> None:
        """The writer: one transaction for each batch."""
        connection = sqlite3.connect(self._path, isolation_level=None)
        forgot_at = 0.0
        was_told = False
        try:
            connection.execute("PRAGMA busy_timeout = 5000")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA max_page_count = {MAX_FILE_BYTES // PAGE_BYTES}")
            while (batch := self._batches.get()) is not None:
                try:
                    write(connection, batch)
                    if time.monotonic() > forgot_at + FORGET_S:
                        forget(connection, time.time())
                        forgot_at = time.monotonic()
                    was_told = False
                except sqlite3.Error as error:
                    if not was_told:
                        self.notes.put(f"cannot write the history {self._path}: {error}")
                    was_told = True
        finally:
            connection.close()


class _Unusable(Exception):
    """The file must go aside; `word` becomes part of its name."""

    def __init__(self, word: str, text: str) -> None:
        super().__init__(text)
        self.word = word


def _make_private(path: Path) -> None:
    """Tenants and their habits are nobody else's business."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise ValueError(
            f"cannot keep a history in {path}: {error.strerror}; name a file in a folder that "
            "there is and that this user may write"
        ) from None
