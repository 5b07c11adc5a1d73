"""What enters and leaves the prefix cache, published as vLLM publishes its own, for other tools.

A ZeroMQ PUB socket sends three frames: topic, sequence number (8 bytes, big-endian), and a
MessagePack batch of BlockStored, BlockRemoved and AllBlocksCleared as tagged arrays. A block is a
page; its hash is the routing prefix (8 bytes, as a number) of our page hash, which is keyed: tools
can follow what is cached, but cannot compute a prompt's hashes themselves, and token ids are never
told. A snapshot begins with AllBlocksCleared and lists all.
"""

import logging
import time
from collections.abc import Sequence

import msgspec
import zmq

from node.actions import CacheChanged
from node.config import NodeConfig
from node.state import NodeIdentity

LOOPBACK = "127.0.0.1"
HIGH_WATER = 1000  # batches that a slow subscriber may leave unread; then it misses some
log = logging.getLogger("tandem.node")


class KVCacheEvent(
    msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False, tag=True
):
    """Base of the events; the class names are the tags on the wire."""


class BlockStored(KVCacheEvent, frozen=True):
    """Blocks are in the cache. Ours are told without their parents and tokens."""

    block_hashes: Sequence[int]
    parent_block_hash: int | None
    token_ids: Sequence[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None


class BlockRemoved(KVCacheEvent, frozen=True):
    """Blocks are not in the cache any more."""

    block_hashes: Sequence[int]
    medium: str | None


class AllBlocksCleared(KVCacheEvent, frozen=True):
    """Nothing is in the cache."""


class KVEventBatch(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Events of one moment, in unix seconds."""

    ts: float
    events: Sequence[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


def batch_of(change: CacheChanged, *, page_size: int, medium: str, unix_s: float) -> KVEventBatch:
    """The events of a change: what was removed, or all, first."""
    events: list[BlockStored | BlockRemoved | AllBlocksCleared] = []
    if change.is_snapshot:
        events.append(AllBlocksCleared())
    if change.removed:
        events.append(BlockRemoved(_numbers(change.removed), medium))
    if change.added:
        stored = _numbers(change.added)
        events.append(BlockStored(stored, None, (), page_size, None, medium, None))
    return KVEventBatch(unix_s, events)


def _numbers(prefixes: Sequence[bytes]) -> list[int]:
    return [int.from_bytes(prefix, "big") for prefix in prefixes]


class KVEvents:
    """A publisher on one thread; sending never waits for subscribers."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], *, host: str, port: int, topic: str
    ) -> None:
        """Raises ValueError where the port is in use."""
        self._socket: zmq.Socket[bytes] = context.socket(zmq.PUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, HIGH_WATER)
        self._topic = topic.encode()
        self._number = 0
        try:
            self._socket.bind(f"tcp://{host}:{port or '*'}")
        except zmq.ZMQError as error:
            self._socket.close()
            raise ValueError(
                f"cannot publish KV events on {host}:{port}: {error}; is another process using "
                "the port (--kv-events-port)?"
            ) from None
        self.address = self._socket.get_string(zmq.LAST_ENDPOINT)

    def publish(self, batch: KVEventBatch) -> None:
        """Send to whoever subscribed; a gap in the numbers says that something was missed."""
        number = self._number.to_bytes(8, "big")
        self._number += 1
        frames = [self._topic, number, msgspec.msgpack.encode(batch)]
        self._socket.send_multipart(frames, flags=zmq.NOBLOCK)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


class CacheWatch:
    """Publishes the changes of a node's prefix cache; without a port it does nothing."""

    def __init__(
        self, config: NodeConfig, identity: NodeIdentity, context: zmq.Context[zmq.Socket[bytes]]
    ) -> None:
        """Raises ValueError where the port is in use.

        Subscribers are not asked who they are: beyond loopback only where that was allowed.
        """
        self._page_size = identity.layout.page_size
        self._medium = "GPU" if config.device.startswith("cuda") else "CPU"
        self.events: KVEvents | None = None
        if config.kv_events_port is not None:
            host = config.host if config.allow_unauthenticated else LOOPBACK
            topic = f"kv@{identity.node_id}@{identity.model.served_name}"
            self.events = KVEvents(context, host=host, port=config.kv_events_port, topic=topic)
            log.info("KV events at %s, topic %s", self.events.address, topic)

    def changed(self, change: CacheChanged) -> None:
        """Something entered or left the cache."""
        if self.events is not None:
            batch = batch_of(
                change, page_size=self._page_size, medium=self._medium, unix_s=time.time()
            )
            self.events.publish(batch)

    def close(self) -> None:
        """Hang up."""
        if self.events is not None:
            self.events.close()
