"""How fast KV pages move between two pools of this host, by each transport; for `tandem doctor`.

The very negotiation and measurement that two nodes do when they meet, between two pools here.
"""

from contextlib import ExitStack
from pathlib import Path

from kv_transfer.exchange import BulkExchange
from kv_transfer.shared_memory import SharedPool
from node.state import NodeIdentity
from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity
from tandem.messages.handoff import OwnerWelcome
from tandem.sockets import peer_identity

# Pages of half a MiB: those of a model of a few billion parameters.
LAYOUT = KVLayout(num_layers=32, num_kv_heads=8, head_dim=64, page_size=16, dtype="bfloat16")
NUM_PAGES = 4
MODEL = ModelIdentity(
    served_name="loopback",
    weights_fingerprint="none",
    tokenizer_fingerprint="none",
    dtype="bfloat16",
    max_model_len=1,
    vocab_size=1,
)


def measure_loopback(run_dir: Path, *, encrypt: bool) -> dict[str, float]:
    """Bytes per second by transport; `encrypt` those over zmq. Raises ValueError where none works.

    `run_dir` gets a Unix socket for as long as this takes, well below a second.
    """
    with ExitStack() as stack:
        owner = _exchange(stack, "owner", run_dir, encrypt=encrypt)
        writer = _exchange(stack, "writer", run_dir, encrypt=encrypt)
        welcome = owner.answer(peer_identity("node", "writer", 1), writer.hello(1))
        if not isinstance(welcome, OwnerWelcome):
            raise ValueError(f"two pools of this host do not fit: {welcome}")
        writer.open_owner(welcome)
        return writer.measured()["owner"]


def _exchange(stack: ExitStack, name: str, run_dir: Path, *, encrypt: bool) -> BulkExchange:
    exchange = BulkExchange(
        NodeIdentity(name, 1, MODEL, LAYOUT, ()),
        SharedPool.create((NUM_PAGES + 1) * LAYOUT.page_bytes),
        num_pages=NUM_PAGES,
        transport="auto",
        host="127.0.0.1",
        run_dir=run_dir,
        encrypt_bulk=encrypt,
    )
    stack.callback(exchange.close)
    exchange.start(lambda event: True)
    return exchange
