"""What the two processes of the stream measurement share: pools and messages."""

from dataclasses import dataclass

import msgspec
import zmq

from kv_transfer.exchange import BulkExchange
from kv_transfer.shared_memory import SharedPool
from kv_transfer.zmq_frames import CHUNK_BYTES, CurveKeys
from node.state import NodeIdentity
from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity
from tandem.messages.handoff import ChunkSum, OwnerRefused, OwnerWelcome, WriterHello
from tandem.sockets import peer_identity

HOST = "127.0.0.1"
NEAR, FAR = "near", "far"
EPOCH = INCARNATION = 1
WRITER = peer_identity("node", NEAR, INCARNATION)
MODEL = ModelIdentity(
    served_name="none",
    weights_fingerprint="none",
    tokenizer_fingerprint="none",
    dtype="float32",
    max_model_len=16,
    vocab_size=16,
)
Socket = zmq.Socket[bytes]


class Open(msgspec.Struct, frozen=True, tag=True):
    """Open a grant for all pages; answered by `Ok`."""

    grant_id: int


class Verify(msgspec.Struct, frozen=True, tag=True):
    """Compare all pages of a grant with their checksum; answered by `Ok`."""

    grant_id: int
    chunk: ChunkSum


class Ok(msgspec.Struct, frozen=True, tag=True):
    """Done, or why not."""

    error: str | None = None


class Sink(msgspec.Struct, frozen=True, tag=True):
    """Who sends the bare stream, with its key; answered by `SinkAt`."""

    public_key: bytes | None


class SinkAt(msgspec.Struct, frozen=True, tag=True):
    """Where the bare stream ends, with its key."""

    address: str
    key: str | None


ToFar = WriterHello | Sink | Open | Verify
FromFar = OwnerWelcome | OwnerRefused | SinkAt | Ok
TO_FAR: msgspec.msgpack.Decoder[ToFar] = msgspec.msgpack.Decoder(ToFar)
FROM_FAR: msgspec.msgpack.Decoder[FromFar] = msgspec.msgpack.Decoder(FromFar)


@dataclass(frozen=True, slots=True)
class Size:
    """Pages of `page_kib` each; all of them are one transfer."""

    page_kib: int
    num_pages: int

    @property
    def num_bytes(self) -> int:
        """Of a transfer."""
        return self.layout.page_bytes * self.num_pages

    @property
    def num_chunks(self) -> int:
        """Messages of a bare stream of as many bytes."""
        return self.num_bytes // CHUNK_BYTES

    @property
    def layout(self) -> KVLayout:
        """Pages of 16 tokens with that many bytes: 4 KiB are a layer's K and V of one head."""
        return KVLayout(
            num_layers=self.page_kib // 8,
            num_kv_heads=1,
            head_dim=64,
            page_size=16,
            dtype="float32",
        )


def make_exchange(name: str, size: Size, *, encrypt: bool) -> tuple[BulkExchange, SharedPool]:
    """What a node has to move pages, over zmq alone; not started."""
    pool = SharedPool.create((size.num_pages + 1) * size.layout.page_bytes)
    exchange = BulkExchange(
        NodeIdentity(name, INCARNATION, MODEL, size.layout, ()),
        pool,
        num_pages=size.num_pages,
        transport="zmq",
        host=HOST,
        encrypt_bulk=encrypt,
    )
    return exchange, pool


def make_keys(*, encrypt: bool) -> CurveKeys | None:
    """Of one end of the bare stream."""
    return CurveKeys.generate() if encrypt else None


def key_of(grant_id: int) -> tuple[bytes, int]:
    """Each grant is for a request of its own."""
    return grant_id.to_bytes(16, "big"), 1
