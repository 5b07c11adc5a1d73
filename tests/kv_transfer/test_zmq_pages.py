"""The zmq receiver against bytes that no writer of ours would send, and the writer alone."""

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
import zmq

from kv_transfer.actions import (
    CloseGrant,
    GrantClosed,
    OpenGrant,
    PagesWritten,
    VerifyPages,
    WriteFailed,
)
from kv_transfer.checksum import read_sum
from kv_transfer.zmq_frames import (
    CHUNK_BYTES,
    ChunkAnswer,
    PageChunk,
    PageRead,
    Probe,
    ReadAnswer,
)
from kv_transfer.zmq_pages import ANSWER_MS, STALL_S, ZmqPool
from kv_transfer.zmq_receiver import ZmqReceiver
from tandem.codec import MAGIC
from tandem.messages.handoff import ChunkSum

PAGE_BYTES = 1024
WRITER = b"node/p0/1"
NEVER_MS = 400


@pytest.fixture
def context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def owner(make_node):
    node = make_node("d0", np.zeros((8, PAGE_BYTES), np.uint8))
    node.bulk.admit_writer(WRITER, "zmq")
    node.bulk.submit(OpenGrant(7, WRITER, (4, 2), (6, 1)))
    return node


@pytest.fixture
def dial(context, owner):
    peers: list[zmq.Socket[bytes]] = []

    def dial(identity: bytes = WRITER) -> "zmq.Socket[bytes]":
        peer = context.socket(zmq.DEALER)
        peer.set(zmq.IDENTITY, identity)
        peer.set(zmq.RCVTIMEO, 5000)
        peer.connect(owner.bulk.zmq_address)
        peers.append(peer)
        return peer

    yield dial
    for peer in peers:
        peer.close(linger=0)


def send(peer: "zmq.Socket[bytes]", grant_id: int, start: int, payload: bytes) -> str | None:
    header = msgspec.msgpack.encode(PageChunk(grant_id, start))
    peer.send_multipart([MAGIC, header, payload])
    magic, answer = peer.recv_multipart()
    assert magic == MAGIC
    return msgspec.msgpack.decode(answer, type=ChunkAnswer).error


def test_a_chunk_lands_where_the_grant_says(owner, dial) -> None:
    peer = dial()
    assert send(peer, 7, PAGE_BYTES, b"b" * PAGE_BYTES) is None
    assert send(peer, 7, 0, b"a" * 1000) is None
    assert send(peer, 7, 1000, b"z" * 24) is None
    assert bytes(owner.pages[4]) == b"a" * 1000 + b"z" * 24
    assert bytes(owner.pages[2]) == b"b" * PAGE_BYTES
    assert owner.pages[[0, 1, 3, 5, 6, 7]].max() == 0


@pytest.mark.parametrize(
    ("grant_id", "start", "num_bytes"),
    [
        (8, 0, PAGE_BYTES),  # no such grant
        (7, 2 * PAGE_BYTES, PAGE_BYTES),  # past its end
        (7, 0, 3 * PAGE_BYTES),
        (7, 1, PAGE_BYTES),  # across two pages
        (7, 0, 0),
        (7, 2**31, PAGE_BYTES),
        (7, 2**63 - 1, PAGE_BYTES),
        (7, 0, PAGE_BYTES + 1),  # a byte too many
        (7, 2 * PAGE_BYTES - 1, 2),
    ],
)
def test_w19_a_chunk_outside_the_grant_is_refused(
    owner, dial, grant_id: int, start: int, num_bytes: int
) -> None:
    peer = dial()
    assert send(peer, grant_id, start, b"x" * num_bytes) is not None
    assert owner.pages.max() == 0


def test_w19_another_peer_cannot_write_into_the_grant(owner, dial) -> None:
    thief = dial(b"node/p6/6")
    assert "not open for this writer" in (send(thief, 7, 0, b"x" * PAGE_BYTES) or "")
    assert owner.pages.max() == 0


def test_w19_a_closed_grant_takes_nothing(owner, dial) -> None:
    peer = dial()
    assert send(peer, 7, 0, b"x" * PAGE_BYTES) is None
    owner.bulk.submit(CloseGrant(7))
    assert owner.event() == GrantClosed(7, True)
    assert send(peer, 7, PAGE_BYTES, b"x" * PAGE_BYTES) is not None
    assert owner.pages[2].max() == 0


def ask(peer: "zmq.Socket[bytes]", request: PageRead) -> tuple[ReadAnswer, bytes | None]:
    peer.send_multipart([MAGIC, msgspec.msgpack.encode(request)])
    magic, answer, *payload = peer.recv_multipart()
    assert magic == MAGIC
    return msgspec.msgpack.decode(answer, type=ReadAnswer), payload[0] if payload else None


def test_pages_of_the_grants_prefix_can_be_read(owner, dial) -> None:
    owner.pages[6], owner.pages[1] = 66, 11
    answer, payload = ask(dial(), PageRead(9, 7, (1, 6), 0))
    assert answer.error is None
    assert payload == bytes([11]) * PAGE_BYTES + bytes([66]) * PAGE_BYTES
    part = np.frombuffer(payload, np.uint8)
    assert answer == ReadAnswer(9, read_sum(7, (1, 6), 0, part), None)


@pytest.mark.parametrize(
    "request_",
    [
        PageRead(1, 8, (6,), 0),  # no such grant
        PageRead(1, 7, (4,), 0),  # to be written, not to be read
        PageRead(1, 7, (6, 0), 0),
        PageRead(1, 7, (2**31 - 1,), 0),
        PageRead(1, 7, (6,), 1),
        PageRead(1, 7, (6,), PAGE_BYTES),
    ],
)
def test_w19_a_read_outside_the_grant_is_refused_and_counted(owner, dial, request_) -> None:
    owner.pages[:] = 5
    answer, payload = ask(dial(), request_)
    assert payload is None
    assert answer.checksum is None
    assert answer.error
    assert owner.bulk.num_refused == 1


def test_w19_another_peer_and_a_closed_grant_read_nothing(owner, dial) -> None:
    answer, payload = ask(dial(b"node/p6/6"), PageRead(1, 7, (6,), 0))
    assert "not open for this writer" in (answer.error or "")
    owner.bulk.submit(CloseGrant(7))
    assert owner.event() == GrantClosed(7, True)
    answer, payload = ask(dial(), PageRead(1, 7, (6,), 0))
    assert payload is None
    assert "not open" in (answer.error or "")


def test_w19_missing_bytes_do_not_verify(owner, dial) -> None:
    peer = dial()
    for _ in range(2):  # a repeated chunk counts once
        assert send(peer, 7, 0, b"x" * PAGE_BYTES) is None
    chunk = ChunkSum(first=0, num_pages=2, checksum=b"c" * 8)
    owner.bulk.submit(VerifyPages((b"k" * 16, 1), 7, (4, 2), (chunk,)))
    assert owner.event().error == "1024 of 2048 bytes were received"


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"GET / HTTP/1.1"],
        [MAGIC, b"\xc1", b"x"],
        [MAGIC, b"\xdd\xff\xff\xff\xff", b"x"],
        [MAGIC, msgspec.msgpack.encode(["PageChunk", 7, -1]), b"x"],
        [MAGIC, msgspec.msgpack.encode(["PageChunk", 7, 2**63]), b"x"],
        [MAGIC, msgspec.msgpack.encode([7, 0]), b"x"],
        [MAGIC, msgspec.msgpack.encode(["ChunkAnswer", 7, [0], None])],
        [MAGIC, msgspec.msgpack.encode({"grant_id": 7, "start": 0}), b"x"],
        [MAGIC, msgspec.msgpack.encode(PageChunk(7, 0))],
        [MAGIC, msgspec.msgpack.encode(Probe(0))],
        [MAGIC, msgspec.msgpack.encode(PageChunk(7, 0)), b"x", b"y"],
        [b"TDM\x63", msgspec.msgpack.encode(PageChunk(7, 0)), b"x"],
        [MAGIC, msgspec.msgpack.encode(PageChunk(7, 0)) + b"\x00" * 2048, b"x"],
        [MAGIC, msgspec.msgpack.encode(PageRead(0, 7, (1,), 0)), b"x"],
        [MAGIC, msgspec.msgpack.encode(["PageRead", 0, 7, [], 0])],
        [MAGIC, msgspec.msgpack.encode(["PageRead", 0, 7, [2**31], 0])],
        [MAGIC, msgspec.msgpack.encode(["PageRead", 0, 7, [-1], 0])],
        [MAGIC, msgspec.msgpack.encode(["PageRead", 0, 7, [1] * 129, 0])],
    ],
)
def test_malformed_frames_are_counted_and_dropped(owner, dial, frames: list[bytes]) -> None:
    peer = dial()
    peer.send_multipart(frames)
    assert send(peer, 7, 0, b"x" * PAGE_BYTES) is None  # it serves on
    assert owner.bulk.num_malformed == 1


def test_a_frame_over_the_limit_never_reaches_us(owner, dial) -> None:
    peer = dial()
    peer.send_multipart([MAGIC, msgspec.msgpack.encode(PageChunk(7, 0)), bytes(3 << 20)])
    other = dial(b"node/p9/1")
    owner.bulk.admit_writer(b"node/p9/1", "zmq")
    owner.bulk.submit(OpenGrant(9, b"node/p9/1", (1,)))
    assert send(other, 9, 0, b"y" * PAGE_BYTES) is None
    assert owner.pages[[4, 2]].max() == 0
    assert not peer.poll(NEVER_MS)
    assert owner.bulk.num_refused == 0


def test_a_silent_owner_fails_the_write_after_a_while(context, make_write) -> None:
    silent = context.socket(zmq.ROUTER)
    port = silent.bind_to_random_port("tcp://127.0.0.1")
    source = np.zeros((4, PAGE_BYTES), np.uint8)
    pool = ZmqPool(context, source, identity=WRITER, address=f"tcp://127.0.0.1:{port}")
    pool.submit(make_write("d0", (0, 1), (4, 2)), 100.0)
    assert pool.advance(100.0 + STALL_S) == []
    (failed,) = pool.advance(100.1 + STALL_S)
    assert isinstance(failed, WriteFailed)
    assert "no acknowledgement" in failed.reason
    assert pool.patience_ms is None
    assert pool.close("done") == []
    silent.close(linger=0)


def test_credit_bounds_what_is_on_its_way(context, make_write) -> None:
    """More than the window is never handed to a peer that does not answer."""
    silent = context.socket(zmq.ROUTER)
    port = silent.bind_to_random_port("tcp://127.0.0.1")
    source = np.zeros((64, CHUNK_BYTES), np.uint8)
    pool = ZmqPool(context, source, identity=WRITER, address=f"tcp://127.0.0.1:{port}")
    pool.submit(make_write("d0", tuple(range(64)), tuple(range(64))), 0.0)
    num_received = 0
    for _ in range(500):
        pool.advance(0.0)
        if silent.poll(5):
            silent.recv_multipart()
            num_received += 1
        elif num_received == 16:
            break
    assert silent.poll(100) == 0
    assert num_received == 16
    assert len(pool.close("done")) == 1
    silent.close(linger=0)


def send_all(pool: ZmqPool) -> None:
    while pool.patience_ms != ANSWER_MS:
        pool.advance(0.0)


def test_what_was_stopped_on_its_way_is_never_written_over(context, make_write) -> None:
    """Chunks of a stopped write that still wait to be sent keep its bytes under its headers."""
    silent = context.socket(zmq.ROUTER)
    silent.set(zmq.RCVHWM, 1)
    silent.set(zmq.RCVBUF, 64 << 10)  # most chunks have to wait at the writer
    silent.set(zmq.RCVTIMEO, 5000)
    port = silent.bind_to_random_port("tcp://127.0.0.1")
    source = np.ones((16, CHUNK_BYTES), np.uint8)
    source[8:] = 2
    pool = ZmqPool(context, source, identity=WRITER, address=f"tcp://127.0.0.1:{port}")
    first = make_write("d0", tuple(range(8)), tuple(range(8)), grant_id=1)
    second = make_write("d0", tuple(range(8, 16)), tuple(range(8)), grant_id=2, request=2)
    pool.submit(first, 0.0)
    send_all(pool)
    assert len(pool.stop(first.key, "stopped")) == 1
    pool.submit(second, 0.0)
    send_all(pool)
    for number in range(16):
        _, _, header, payload = silent.recv_multipart(copy=False)
        grant_id = msgspec.msgpack.decode(header.bytes, type=PageChunk).grant_id
        assert grant_id == number // 8 + 1
        chunk = np.frombuffer(payload.buffer, np.uint8)
        assert (chunk.min(), chunk.max()) == (grant_id, grant_id)
    pool.close("done")
    silent.close(linger=0)


def test_chunks_that_came_together_are_answered_together(context) -> None:
    pages = np.zeros((4, PAGE_BYTES), np.uint8)
    receiver = ZmqReceiver(context, pages, "127.0.0.1")
    peer = context.socket(zmq.DEALER)
    peer.set(zmq.IDENTITY, WRITER)
    peer.set(zmq.RCVTIMEO, 5000)
    peer.connect(receiver.address)
    receiver.open_grant(OpenGrant(7, WRITER, (3, 1)))
    receiver.open_grant(OpenGrant(8, WRITER, (2,)))
    for grant_id, start in ((7, 0), (9, 0), (8, 0), (7, PAGE_BYTES)):
        header = msgspec.msgpack.encode(PageChunk(grant_id, start))
        peer.send_multipart([MAGIC, header, bytes([grant_id]) * PAGE_BYTES])
    arrived: list[tuple[bytes, list[zmq.Frame]]] = []
    while len(arrived) < 4:
        assert receiver.socket.poll(5000)
        arrived += receiver.receive()
    receiver.take(arrived)
    answers = [msgspec.msgpack.decode(peer.recv_multipart()[1], type=ChunkAnswer) for _ in range(3)]
    assert answers[0].starts == (0,) and "grant 9 is not open" in (answers[0].error or "")
    assert answers[1:] == [ChunkAnswer(7, (0, PAGE_BYTES), None), ChunkAnswer(8, (0,), None)]
    assert pages[:, 0].tolist() == [0, 7, 8, 7]
    assert receiver.num_refused == 1
    receiver.close()
    peer.close(linger=0)


def test_one_answer_for_all_chunks_ends_the_write(context, make_write) -> None:
    owner = context.socket(zmq.ROUTER)
    owner.set(zmq.RCVTIMEO, 5000)
    port = owner.bind_to_random_port("tcp://127.0.0.1")
    source = np.zeros((3, CHUNK_BYTES), np.uint8)
    pool = ZmqPool(context, source, identity=WRITER, address=f"tcp://127.0.0.1:{port}")
    write = make_write("d0", (0, 1, 2), (4, 2, 0))
    pool.submit(write, 0.0)
    send_all(pool)
    for _ in range(3):
        identity, *_ = owner.recv_multipart()
    starts = tuple(number * CHUNK_BYTES for number in range(3))
    header = msgspec.msgpack.encode(ChunkAnswer(write.grant_id, (*starts, 5), None))  # 5: of none
    owner.send_multipart([identity, MAGIC, header])
    assert pool.socket is not None and pool.socket.poll(5000)
    (event,) = pool.advance(0.0)
    assert isinstance(event, PagesWritten) and event.key == write.key
    assert pool.patience_ms is None
    pool.close("done")
    owner.close(linger=0)


def test_an_address_that_is_none_says_so(context) -> None:
    with pytest.raises(ValueError, match="cannot dial 'nonsense'"):
        ZmqPool(context, np.zeros((1, 8), np.uint8), identity=WRITER, address="nonsense")
