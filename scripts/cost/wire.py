"""What the two processes of the control measurement share: their messages, pools and identities."""

from dataclasses import dataclass
from pathlib import Path

from kv_transfer.exchange import BulkExchange
from kv_transfer.shared_memory import SharedPool
from node.state import NodeIdentity
from tandem.layout import KVLayout
from tandem.messages.common import Counter, Message, ModelIdentity, NodeRef
from tandem.messages.handoff import ChunkSum, OwnerRefused, OwnerWelcome, WriterHello
from tandem.sockets import peer_identity

# The demo model's pages, of 64 KiB.
LAYOUT = KVLayout(num_layers=4, num_kv_heads=2, head_dim=64, page_size=16, dtype="float32")
MODEL = ModelIdentity(
    served_name="none",
    weights_fingerprint="none",
    tokenizer_fingerprint="none",
    dtype="float32",
    max_model_len=16,
    vocab_size=16,
)
EPOCH = INCARNATION = 1
NEAR, FAR = "near", "far"
FAR_NODE = NodeRef(node_id=FAR, incarnation=INCARNATION, epoch=EPOCH, control_address="")
NUM_OPEN = 4  # grants that the far side has open ahead of the writer


class Ping(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """A control message like any other."""

    number: Counter


class Pong(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Its answer."""

    number: Counter


class Written(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """All pages of a grant are at the far side; verify them."""

    grant_id: Counter
    chunk: ChunkSum


class Verified(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The outcome."""

    grant_id: Counter
    error: str | None


ToFar = WriterHello | Ping | Written
FromFar = OwnerWelcome | OwnerRefused | Pong | Verified


def key_of(grant_id: int) -> tuple[bytes, int]:
    """Each grant is for a request of its own."""
    return grant_id.to_bytes(16, "big"), 1


@dataclass(frozen=True, slots=True)
class Side:
    """A pool and what moves its pages, under the name of a node."""

    name: str
    exchange: BulkExchange
    pages: tuple[int, ...]

    @classmethod
    def make(
        cls, name: str, transport: str, num_pages: int, run_dir: Path, *, encrypt: bool
    ) -> "Side":
        """Not yet started; the exchange owns the pool."""
        pool = SharedPool.create((num_pages + 1) * LAYOUT.page_bytes)
        exchange = BulkExchange(
            NodeIdentity(name, INCARNATION, MODEL, LAYOUT, ()),
            pool,
            num_pages=num_pages,
            transport=transport,
            host="127.0.0.1",
            run_dir=run_dir,
            encrypt_bulk=encrypt,
        )
        return cls(name, exchange, tuple(range(num_pages)))

    @property
    def identity(self) -> bytes:
        """Of its control links."""
        return peer_identity("node", self.name, INCARNATION)
