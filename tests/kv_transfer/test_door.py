"""Key-bound bulk sockets: who gets in, and as whom."""

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
import zmq

from kv_transfer.actions import CloseGrant, GrantClosed, OpenGrant
from kv_transfer.bulk import BulkThread
from kv_transfer.zmq_frames import (
    ChunkAnswer,
    CurveKeys,
    PageChunk,
    PageRead,
    ReadAnswer,
    listen,
)
from kv_transfer.zmq_frames import dial as dial_owner
from kv_transfer.zmq_pages import ZmqPool
from tandem.codec import MAGIC

PAGE_BYTES = 1024
WRITER, OTHER = b"node/p0/1", b"node/p6/6"
OWNER_KEYS, WRITER_KEYS, OTHER_KEYS = (CurveKeys.generate() for _ in range(3))
NEVER_MS = 400


@pytest.fixture
def bulk() -> Iterator[BulkThread]:
    """An owner with a grant for WRITER, that knows the keys of two writers; not started yet."""
    pages = np.zeros((8, PAGE_BYTES), np.uint8)
    bulk = BulkThread(
        pages, identity=b"node/d0/1", host="127.0.0.1", post=lambda event: None, keys=OWNER_KEYS
    )
    for identity, keys in ((WRITER, WRITER_KEYS), (OTHER, OTHER_KEYS)):
        bulk.allow_key(identity, keys.public)
        bulk.admit_writer(identity, "zmq")
    bulk.submit(OpenGrant(7, WRITER, (4, 2), (6,)))
    yield bulk
    bulk.close()


@pytest.fixture
def dial(bulk: BulkThread):
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    peers: list[zmq.Socket[bytes]] = []

    def dial(identity: bytes, keys: CurveKeys | None) -> "zmq.Socket[bytes]":
        peer = context.socket(zmq.DEALER)
        peer.set(zmq.IDENTITY, identity)
        if keys is not None:
            peer.set(zmq.CURVE_SERVERKEY, OWNER_KEYS.public)
            peer.set(zmq.CURVE_PUBLICKEY, keys.public)
            peer.set(zmq.CURVE_SECRETKEY, keys.secret)
        peer.connect(bulk.zmq_address)
        peers.append(peer)
        return peer

    yield dial
    for peer in peers:
        peer.close(linger=0)
    context.term()


def send(peer: "zmq.Socket[bytes]") -> None:
    peer.send_multipart([MAGIC, msgspec.msgpack.encode(PageChunk(7, 0)), b"x" * PAGE_BYTES])


def answer(peer: "zmq.Socket[bytes]", kind: type) -> ChunkAnswer | ReadAnswer:
    assert peer.poll(5000), "no answer"
    return msgspec.msgpack.decode(peer.recv_multipart()[1], type=kind)


def test_the_writer_with_its_own_key_gets_in(bulk: BulkThread, dial) -> None:
    bulk.start()
    peer = dial(WRITER, WRITER_KEYS)
    send(peer)
    assert answer(peer, ChunkAnswer).error is None


@pytest.mark.parametrize("keys", [None, CurveKeys.generate()])
def test_no_key_and_an_unknown_key_get_nowhere(bulk: BulkThread, dial, keys) -> None:
    bulk.start()
    stranger, known = dial(WRITER, keys), dial(WRITER + b"#1", WRITER_KEYS)
    send(stranger)
    send(known)
    assert answer(known, ChunkAnswer).error is None
    assert not stranger.poll(NEVER_MS)
    assert bulk.num_malformed == bulk.num_refused == 0, "what it sent reached nobody"


def test_a_known_key_under_anothers_identity_writes_and_reads_nothing(bulk, dial) -> None:
    bulk.start()
    thief = dial(WRITER, OTHER_KEYS)
    send(thief)
    assert "not open for this writer" in (answer(thief, ChunkAnswer).error or "")
    thief.send_multipart([MAGIC, msgspec.msgpack.encode(PageRead(1, 7, (6,), 0))])
    assert "not open for this writer" in (answer(thief, ReadAnswer).error or "")
    assert bulk.num_refused == 2


def test_nobody_gets_in_while_nobody_guards_the_door(bulk: BulkThread, dial) -> None:
    peer = dial(WRITER, WRITER_KEYS)
    send(peer)
    assert not peer.poll(NEVER_MS)
    bulk.start()
    assert answer(peer, ChunkAnswer).error is None


def test_a_socket_without_a_door_lets_nobody_in() -> None:
    contexts: list[zmq.Context[zmq.Socket[bytes]]] = [zmq.Context(), zmq.Context()]
    socket, address = listen(contexts[0], "127.0.0.1", OWNER_KEYS)
    peer = dial_owner(contexts[1], WRITER, address, WRITER_KEYS, OWNER_KEYS.public.decode())
    assert not peer.poll(NEVER_MS, zmq.POLLOUT)
    for each in (peer, socket):
        each.close(linger=0)
    for context in contexts:
        context.term()


@pytest.mark.parametrize(("keys", "server_key"), [(WRITER_KEYS, None), (None, "k" * 40)])
def test_one_side_without_a_key_is_refused_before_dialling(bulk, keys, server_key) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with pytest.raises(ValueError, match="one side wants encrypted pages"):
        ZmqPool(
            context,
            np.zeros((1, 8), np.uint8),
            identity=WRITER,
            address=bulk.zmq_address,
            keys=keys,
            server_key=server_key,
        )
    context.term()


def test_another_owners_key_is_noticed(bulk: BulkThread) -> None:
    """Whoever took the owner's address has not its secret key."""
    bulk.start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pool = ZmqPool(
        context,
        np.zeros((1, PAGE_BYTES), np.uint8),
        identity=WRITER,
        address=bulk.zmq_address,
        keys=WRITER_KEYS,
        server_key=OTHER_KEYS.public.decode(),
    )
    with pytest.raises(ValueError, match="are the keys of both nodes"):
        pool.measure()
    pool.close("done")
    context.term()


def test_an_owner_without_keys_has_no_door(make_node) -> None:
    node = make_node("d0", np.zeros((8, PAGE_BYTES), np.uint8))
    assert node.bulk.public_key is None
    node.bulk.allow_key(WRITER, WRITER_KEYS.public)
    node.bulk.submit(CloseGrant(1))
    assert node.event() == GrantClosed(1, False)
