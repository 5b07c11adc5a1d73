"""May these two nodes exchange pages, and over which transports? Pure, but for `host_id`.

A writer is told all offers that reach it, measures them, names the one it will use, and is told so.
Refusals name both values, so that an operator sees which side to change.
"""

import re
import socket
from dataclasses import dataclass
from pathlib import Path

from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity
from tandem.messages.handoff import OwnerRefused, OwnerWelcome, TransportOffer, WriterHello

SAME_HOST_ONLY = frozenset({"inproc", "shared_memory", "cuda_ipc"})
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Two nodes with other numbers in these produce or understand other tokens.
COMPARED = ("weights_fingerprint", "tokenizer_fingerprint", "dtype", "vocab_size")


@dataclass(frozen=True, slots=True)
class OwnerSide:
    """What an owner is, and how its pool can be reached."""

    node_id: str
    incarnation: int
    layout: KVLayout
    model: ModelIdentity
    host_id: str
    num_pages: int
    offers: tuple[TransportOffer, ...]


def answer(
    hello: WriterHello, owner: OwnerSide, *, epoch: int, settled: str | None = None
) -> OwnerWelcome | OwnerRefused:
    """The owner's answer: what it offers to this writer, or why nothing.

    A transport on which the two have `settled` before is the only one offered again. The writer's
    choice, where it names one that is offered, is confirmed.
    """
    reason = owner.layout.explain_difference(hello.layout)
    reason = reason or explain_difference(owner.model, hello.model)
    usable: list[TransportOffer] = []
    if reason is None:
        usable = [o for o in _usable(hello, owner) if settled in (None, o.transport)]
        reason = _explain_offers(hello, owner)
    if usable and hello.chosen is not None and hello.chosen not in [o.transport for o in usable]:
        offered, usable = [o.transport for o in usable], []
        reason = f"the writer chose {hello.chosen}, the owner offers it {offered}"
    if not usable:
        reason = f"{owner.node_id} and {hello.node_id}: {reason}"
        return OwnerRefused(node_id=owner.node_id, reason=reason)
    return OwnerWelcome(
        node_id=owner.node_id,
        incarnation=owner.incarnation,
        epoch=epoch,
        num_pages=owner.num_pages,
        offers=tuple(usable),
        transport=hello.chosen,
    )


def _usable(hello: WriterHello, owner: OwnerSide) -> list[TransportOffer]:
    """Offers that the writer speaks and that reach it, in its order."""
    is_same_host = owner.host_id == hello.host_id
    return [
        offer
        for transport in hello.transports
        for offer in owner.offers
        if offer.transport == transport
        and (is_same_host or transport not in SAME_HOST_ONLY)
        and (transport != "zmq" or (offer.key is None) == (hello.bulk_key is None))
    ]


def _explain_offers(hello: WriterHello, owner: OwnerSide) -> str:
    where = "on the same host" if owner.host_id == hello.host_id else "on another host"
    reason = (
        f"no transport in common: the owner offers {[o.transport for o in owner.offers]}, the "
        f"writer {where} accepts {list(hello.transports)}; "
    )
    if "cuda_ipc" in (*hello.transports, *(offer.transport for offer in owner.offers)):
        return reason + "pages on a GPU are exchanged with GPUs of the same host only"
    reason += "start both with --transport zmq or auto"
    has_key = any(offer.key is not None for offer in owner.offers)
    if "zmq" in hello.transports and has_key != (hello.bulk_key is not None):
        reason += ", and both with --keys or both without"
    return reason


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
