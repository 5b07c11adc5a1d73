"""What a process received and decided, as a MessagePack stream that a pure core can be replayed on.

A core is recorded at its boundary: every call of its deciding methods with its arguments, and what
it answered. The first record says how the core was built. Values are our own structs and
dataclasses, written with their class names; reading makes instances of those classes and of
nothing else. The log holds prompts, answers and the key of page hashes: it is written where the
operator asks for it, readable by its owner only.
"""

import dataclasses
import importlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import numpy as np

from tandem.frames import Blob, TokenIds

logger = logging.getLogger(__name__)
VERSION = 1
# Modules of the cores and their values; a log names no class outside them.
PACKAGES = frozenset(
    {
        "coordinator",
        "decode_node",
        "gateway",
        "kv_transfer",
        "node",
        "prefill_node",
        "scheduling",
        "tandem",
    }
)
MAX_BYTES = 1 << 30
C = TypeVar("C")


class BadLog(ValueError):
    """The file is no event log of this version, or was cut within a record."""


class EventLog:
    """Appends records to a file, each at once: what a process did last is what one looks for.

    Beyond `max_bytes`, or once the disk takes no more, nothing is recorded; `is_full` tells.
    """

    def __init__(
        self, path: Path, *, role: str, built_from: Sequence[object], max_bytes: int = MAX_BYTES
    ) -> None:
        """`built_from` are the values that the recorded core was built from."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as error:
            raise ValueError(f"cannot record events to {path}: {error.strerror}") from None
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._encoder = msgspec.msgpack.Encoder()
        self._num_bytes_left = max_bytes
        self.is_full = False
        self._write({"tandem_event_log": VERSION, "role": role, "built_from": pack(built_from)})

    def called(self, method: str, arguments: Sequence[object], answer: object) -> None:
        """One call of the core and what it decided."""
        self._write([method, pack(arguments), pack(answer)])

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()

    def _write(self, record: object) -> None:
        data = self._encoder.encode(record)
        self._num_bytes_left -= 4 + len(data)
        self.is_full = self.is_full or self._num_bytes_left < 0
        if self.is_full:
            return
        try:
            self._file.write(len(data).to_bytes(4, "big") + data)
        except OSError as error:  # a full disk must not end what is recorded
            self.is_full = True
            logger.warning("recording ends: %s", error)


class _Recorded:
    """Passes everything on to a core, and writes calls of its deciding methods to a log."""

    _core: object
    _log: EventLog
    _methods: frozenset[str]

    def __init__(self, core: object, log: EventLog, methods: frozenset[str]) -> None:
        own = {"_core": core, "_log": log, "_methods": methods}
        for name, value in own.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._core, name, value)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever the core has
        value = getattr(self._core, name)
        if name not in self._methods:
            return value

        def call(*arguments: object) -> object:
            answer = value(*arguments)
            self._log.called(name, arguments, answer)
            return answer

        return call

    def __len__(self) -> int:
        return len(cast("Sequence[object]", self._core))


def open_log(
    path: str | None, *, role: str, name: str, built_from: Sequence[object]
) -> EventLog | None:
    """The log that an operator asked for, if any; in a folder it is called `name`.events.

    Raises ValueError where it cannot be written.
    """
    if path is None:
        return None
    file = Path(path) / f"{name}.events" if Path(path).is_dir() else Path(path)
    return EventLog(file, role=role, built_from=built_from)


def record(core: C, log: EventLog | None, methods: Iterable[str]) -> C:
    """The core itself, or one that writes what it is told and answers to the log."""
    if log is None:
        return core
    return cast("C", _Recorded(core, log, frozenset(methods)))


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One recorded call; `answer` is in its packed form, to compare with `pack` of another."""

    method: str
    arguments: tuple[object, ...]
    answer: object


@dataclasses.dataclass(frozen=True, slots=True)
class Recording:
    """A whole log. `built_from` is what the core was built from."""

    role: str
    built_from: tuple[object, ...]
    calls: tuple[Call, ...]


def read_log(path: Path) -> Recording:
    """Read a log; an incomplete last record (the process was killed) is left out.

    Raises BadLog.
    """
    records = _records(path.read_bytes())
    header = next(records, None)
    if not isinstance(header, dict) or header.get("tandem_event_log") != VERSION:
        raise BadLog(f"{path} is no event log of version {VERSION}: record it again")
    try:
        calls = tuple(
            Call(method, cast("tuple[object, ...]", tuple(unpack(arguments))), answer)
            for method, arguments, answer in cast("Iterator[tuple[str, Any, object]]", records)
        )
        built_from = tuple(unpack(header["built_from"]))
    except (LookupError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise BadLog(f"{path}: {error}; was it written by another version?") from None
    return Recording(str(header["role"]), built_from, calls)


def _records(data: bytes) -> Iterator[object]:
    position = 0
    while position + 4 <= len(data):
        end = position + 4 + int.from_bytes(data[position : position + 4], "big")
        if end > len(data):
            return
        try:
            yield msgspec.msgpack.decode(data[position + 4 : end])
        except msgspec.DecodeError as error:
            raise BadLog(f"a record at byte {position} cannot be read: {error}") from None
        position = end


def pack(value: object) -> object:
    """A value as MessagePack can say it; our classes as `{"$": "module:Class", ...}`."""
    match value:
        case Enum():
            return pack(value.value)
        case None | bool() | int() | float() | str() | bytes():
            return value
        case TokenIds():
            return {"$": "ids", "": value.to_frame()}
        case Blob():
            return {"$": "blob", "": value.to_frame()}
        case np.ndarray():
            return {"$": "array", "type": value.dtype.str, "": value.tobytes()}
        case np.generic():
            return value.item()
        case list() | tuple():
            return [pack(each) for each in value]
        case dict():
            return {"$": "dict", "": [[pack(k), pack(v)] for k, v in value.items()]}
        case frozenset() | set():
            return {"$": "set", "": [pack(each) for each in sorted(value)]}
    names = _fields(type(value))
    if names is None:
        raise TypeError(f"a {type(value).__name__} cannot be recorded: it is no value of ours")
    fields = {name: pack(getattr(value, name)) for name in names}
    return {"$": f"{type(value).__module__}:{type(value).__qualname__}", **fields}


def unpack(value: object) -> Any:  # noqa: ANN401  whatever was packed; lists come back as tuples
    """The value that `pack` was given. Raises ValueError for a class that is none of ours."""
    if isinstance(value, list):
        return tuple(unpack(each) for each in value)
    if not isinstance(value, dict):
        return value
    match value["$"]:
        case "ids":
            return TokenIds.from_frame(value[""])
        case "blob":
            return Blob.from_frame(value[""])
        case "array":
            return np.frombuffer(value[""], np.dtype(value["type"]))
        case "dict":
            return {unpack(k): unpack(v) for k, v in value[""]}
        case "set":
            return frozenset(unpack(each) for each in value[""])
        case str(name):
            fields = {k: unpack(v) for k, v in value.items() if k != "$"}
            return _class_of(name)(**fields)
    raise ValueError("a value without a class")


def _fields(kind: type) -> tuple[str, ...] | None:
    if issubclass(kind, msgspec.Struct):
        return kind.__struct_fields__
    if dataclasses.is_dataclass(kind):
        return tuple(f.name for f in dataclasses.fields(kind) if f.init)
    return None


def _class_of(name: str) -> type:
    module, _, qualname = name.partition(":")
    if module.partition(".")[0] not in PACKAGES:
        raise ValueError(f"{name} is no class of ours")
    found = getattr(importlib.import_module(module), qualname)
    if not isinstance(found, type) or _fields(found) is None:
        raise ValueError(f"{name} is no value class")
    return found
