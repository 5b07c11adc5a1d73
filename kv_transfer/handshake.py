"""May these two nodes exchange pages, and over which transport? Pure, but for `host_id`.

Refusals name both values, so that an operator sees which side to change.
"""

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity
from tandem.messages.handoff import OwnerRefused, OwnerWelcome, WriterHello

SAME_HOST_ONLY = frozenset({"inproc", "shared_memory", "cuda_ipc"})
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Two nodes with other numbers in these produce or understand other tokens.
COMPARED = ("weights_fingerprint", "tokenizer_fingerprint", "dtype", "vocab_size")


@dataclass(frozen=True, slots=True)
class Offer:
    """A transport over which an owner's pool can be written, and where."""

    transport: str
    address: str


def answer(
    hello: WriterHello,
    *,
    node_id: str,
    incarnation: int,
    epoch: int,
    layout: KVLayout,
    model: ModelIdentity,
    host_id: str,
    num_pages: int,
    offers: Sequence[Offer],
) -> OwnerWelcome | OwnerRefused:
    """The owner's answer: the first of the writer's transports that works, or why none does."""
    reason = layout.explain_difference(hello.layout) or explain_difference(model, hello.model)
    offer = None
    if reason is None:
        is_same_host = host_id == hello.host_id
        offer = choose(hello.transports, offers, is_same_host=is_same_host)
        where = "on the same host" if is_same_host else "on another host"
        reason = (
            f"no transport in common: the owner offers {[o.transport for o in offers]}, the writer "
            f"{where} accepts {list(hello.transports)}; start both with --transport zmq or auto"
        )
    if offer is None:
        return OwnerRefused(node_id=node_id, reason=f"{node_id} and {hello.node_id}: {reason}")
    return OwnerWelcome(
        node_id=node_id,
        incarnation=incarnation,
        epoch=epoch,
        num_pages=num_pages,
        transport=offer.transport,
        transport_address=offer.address,
    )


def choose(wanted: Sequence[str], offers: Sequence[Offer], *, is_same_host: bool) -> Offer | None:
    """The first wanted transport that is offered and reaches the writer."""
    for transport in wanted:
        if transport in SAME_HOST_ONLY and not is_same_host:
            continue
        for offer in offers:
            if offer.transport == transport:
                return offer
    return None


def explain_difference(mine: ModelIdentity, theirs: ModelIdentity) -> str | None:
    """Both values of the first difference that forbids sharing KV; None where there is none."""
    for name in COMPARED:
        here, there = getattr(mine, name), getattr(theirs, name)
        if here != there:
            return f"{name.replace('_', ' ')} differs: {here} here, {there} there"
    return None


def host_id() -> str:
    """Equal for processes that see the same kernel under the same name; for `WriterHello`."""
    boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else "unknown-boot"
    return re.sub(r"[^A-Za-z0-9._:/@+ -]", "_", f"{boot}/{socket.gethostname()}")[:128]
