"""What is recorded comes back as the same values, and only as values of ours."""

import stat
from pathlib import Path

import msgspec
import numpy as np
import pytest

from node.actions import Reply
from node.core import FromPeer
from node.runner import Sampled, StepResult
from tandem.event_log import BadLog, EventLog, pack, read_log, record, unpack
from tandem.frames import Blob, TokenIds
from tandem.messages.common import NodeRef
from tandem.messages.serving import Cancel, TokenDelta

CANCEL = Cancel(request_id=bytes(16), attempt=3)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -7,
        2.5,
        "text",
        b"bytes",
        (1, ("a", b"b")),
        {"a": 1, b"k": (2,)},
        frozenset({1, 2}),
        TokenIds([1, -2, 3]),
        Blob(b"hashes"),
        CANCEL,
        TokenDelta(request_id=bytes(16), attempt=1, start=0, ids=(4, 5)),
        NodeRef(node_id="p0", incarnation=1, epoch=2, control_address="tcp://x:1"),
        FromPeer(b"gateway/g/1", CANCEL),
        Reply(b"peer", CANCEL),
        StepResult((Sampled(4), None)),
    ],
)
def test_a_value_comes_back_equal(value: object) -> None:
    assert unpack(msgspec.msgpack.decode(msgspec.msgpack.encode(pack(value)))) == value


def test_arrays_come_back_with_their_type() -> None:
    back = unpack(pack(np.arange(5, dtype=np.int32)))
    assert back.dtype == np.int32
    assert back.tolist() == [0, 1, 2, 3, 4]


def test_what_is_no_value_of_ours_is_not_recorded() -> None:
    with pytest.raises(TypeError, match="cannot be recorded"):
        pack(object())


@pytest.mark.parametrize(
    "name", ["subprocess:Popen", "os:system", "tandem.event_log:EventLog", "tandem.codec:encode"]
)
def test_a_log_cannot_name_other_classes(name: str) -> None:
    with pytest.raises(ValueError, match=r"class|value"):
        unpack({"$": name})


class Counter:
    """A core in miniature."""

    def __init__(self, start: int) -> None:
        self.total = start
        self.num_dropped = 0

    def handle(self, amount: int, now: float) -> list[int]:
        self.total += amount
        return [self.total]

    def __len__(self) -> int:
        return self.total


def test_calls_are_recorded_and_the_core_works_as_before(tmp_path: Path) -> None:
    path = tmp_path / "events"
    log = EventLog(path, role="counter", built_from=(10,))
    core = record(Counter(10), log, ["handle"])
    assert core.handle(5, 0.5) == [15]
    assert core.handle(1, 0.6) == [16]
    core.num_dropped += 1
    assert (core.total, core.num_dropped, len(core)) == (16, 1, 16)
    log.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    recording = read_log(path)
    assert (recording.role, recording.built_from) == ("counter", (10,))
    again = Counter(*recording.built_from)  # type: ignore[arg-type]
    for call in recording.calls:
        assert pack(getattr(again, call.method)(*call.arguments)) == call.answer
    assert len(recording.calls) == 2


def test_without_a_log_the_core_is_not_wrapped() -> None:
    core = Counter(0)
    assert record(core, None, ["handle"]) is core


def test_a_cut_log_keeps_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events"
    log = EventLog(path, role="counter", built_from=())
    for number in range(3):
        log.called("handle", (number,), None)
    log.close()
    path.write_bytes(path.read_bytes()[:-1])
    assert [call.arguments for call in read_log(path).calls] == [(0,), (1,)]


def test_recording_stops_at_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "events"
    log = EventLog(path, role="counter", built_from=(), max_bytes=1000)
    for number in range(100):
        log.called("handle", (number, "x" * 50), None)
    log.close()
    assert log.is_full
    assert path.stat().st_size <= 1000
    assert read_log(path).calls


def test_a_full_disk_ends_the_recording_and_nothing_else() -> None:
    log = EventLog(Path("/dev/full"), role="counter", built_from=())
    core = record(Counter(0), log, ["handle"])
    assert core.handle(1, 0.0) == [1]
    assert log.is_full
    log.close()


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(b"\x00\x00\x00\x02hello")
    with pytest.raises(BadLog):
        read_log(path)
