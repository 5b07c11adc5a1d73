"""Records of how long answers became, for training: features and lengths, never text or tokens.

JSON lines, so that an operator can read what is kept. A file begins with the names of its features;
files are replaced by new ones at a size, and of each gateway's the oldest go.
"""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gateway.features import FEATURES

VERSION = 1
MAX_FILE_BYTES = 8 << 20  # some 40,000 answers
MAX_FILES = 8
logger = logging.getLogger(__name__)


class LengthRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer. `is_cut`: by its limit or its client, so it would have been longer."""

    features: tuple[float, ...]
    num_tokens: int
    max_tokens: int
    is_cut: bool


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tandem_length_records: int
    features: tuple[str, ...]


class LengthRecorder:
    """Appends to files `NAME-<number>.lengths` in a folder, readable by their owner only.

    Once the disk takes no more nothing is recorded, and serving goes on.
    """

    def __init__(self, folder: Path, name: str, *, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        """Raises ValueError where the folder cannot be written to."""
        self._folder = folder
        self._name = name.replace("/", "_")
        self._max_file_bytes = max_file_bytes
        self._number = time.time_ns() // 1_000_000
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            raise ValueError(
                f"cannot record lengths in {folder}: {error.strerror}; name a folder that this "
                "user may write to (record-dir)"
            ) from None

    def _open(self) -> None:
        path = self._folder / f"{self._name}-{self._number}.lengths"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._file = os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)
        self._num_bytes_left = self._max_file_bytes
        self._number += 1
        ours = [f for f in self._folder.glob("*.lengths") if _owner(f) == self._name]
        for old in sorted(ours, key=_age)[:-MAX_FILES]:
            old.unlink(missing_ok=True)
        self._put(_Header(VERSION, FEATURES))

    def _put(self, record: msgspec.Struct) -> None:
        line = msgspec.json.encode(record) + b"\n"
        self._num_bytes_left -= len(line)
        self._file.write(line)

    def write(self, record: LengthRecord) -> None:
        """Keep one."""
        if self._file.closed:
            return
        try:
            if self._num_bytes_left <= 0:
                self._file.close()
                self._open()
            self._put(record)
        except OSError as error:
            logger.warning("lengths are not recorded any more: %s", error)
            self._file.close()

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()


def _owner(path: Path) -> str:
    return path.stem.rpartition("-")[0]


def _age(path: Path) -> tuple[int, str]:
    number = path.stem.rpartition("-")[2]
    return (int(number) if number.isdigit() else 0, path.name)


def read_records(path: Path) -> Iterator[LengthRecord]:
    """The records of a file, or of all files of a folder, older files first.

    An incomplete last line (the process was killed) is left out. Raises ValueError for a file that
    is something else, or of other features.
    """
    files = sorted(path.glob("*.lengths"), key=_age) if path.is_dir() else [path]
    if not files:
        raise ValueError(
            f"there are no records in {path}: serve with the gateway's --record-dir first"
        )
    for file in files:
        yield from _read_file(file)


def _read_file(path: Path) -> Iterator[LengthRecord]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    try:
        header = msgspec.json.decode(lines[0], type=_Header)
        records = [msgspec.json.decode(line, type=LengthRecord) for line in lines[1:-1]]
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} holds no length records: {error}") from None
    if (header.tandem_length_records, header.features) != (VERSION, FEATURES):
        raise ValueError(
            f"{path} was recorded by another version, with other features: remove it, and record "
            "again with this one"
        )
    for record in records:
        if len(record.features) != len(FEATURES):
            raise ValueError(f"a record in {path} has {len(record.features)} features")
    yield from records
