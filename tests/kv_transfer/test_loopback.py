"""The measurement of `tandem doctor`, and what a node reports of its links."""

from pathlib import Path

import pytest

from kv_transfer.exchange import MAX_LINKS, BulkExchange
from kv_transfer.loopback import LAYOUT, MODEL, NUM_PAGES, measure_loopback
from kv_transfer.shared_memory import SharedPool
from node.state import NodeIdentity
from tandem.messages.handoff import OwnerWelcome, TransportOffer
from tandem.sockets import peer_identity


@pytest.mark.parametrize("encrypt", [False, True])
def test_both_transports_of_a_host_are_measured(tmp_path: Path, encrypt: bool) -> None:
    speeds = measure_loopback(tmp_path, encrypt=encrypt)
    # On a machine with much else to do a trial over zmq may take too long, and is left out.
    assert "shared_memory" in speeds and set(speeds) <= {"shared_memory", "zmq"}
    assert min(speeds.values()) > 0
    assert list(tmp_path.iterdir()) == []


def make(name: str, run_dir: Path) -> BulkExchange:
    exchange = BulkExchange(
        NodeIdentity(name, 1, MODEL, LAYOUT, ()),
        SharedPool.create((NUM_PAGES + 1) * LAYOUT.page_bytes),
        num_pages=NUM_PAGES,
        transport="auto",
        host="127.0.0.1",
        run_dir=run_dir,
    )
    exchange.start(lambda event: True)
    return exchange


def test_a_node_reports_how_it_reaches_others_and_why_not(tmp_path: Path) -> None:
    owner, writer = make("owner", tmp_path), make("writer", tmp_path)
    try:
        welcome = owner.answer(peer_identity("node", "writer", 1), writer.hello(1))
        assert isinstance(welcome, OwnerWelcome) and writer.links() == ()
        chosen = writer.open_owner(welcome)
        (link,) = writer.links()
        assert (link.node_id, link.transport) == ("owner", chosen) and link.bytes_per_s > 0
        assert link.explanation.startswith("to owner: ") and link.explanation.endswith(chosen)
        nowhere = TransportOffer(transport="shared_memory", address="nowhere", key=None)
        broken = OwnerWelcome(
            node_id="other", incarnation=1, epoch=1, num_pages=NUM_PAGES, offers=(nowhere,)
        )
        with pytest.raises(ValueError, match="no transport to other works"):
            writer.open_owner(broken)
        last = writer.links()[-1]
        assert last.transport is None
        assert "no transport to other works" in last.explanation and len(writer.links()) == 2
        assert MAX_LINKS == 64  # what a heartbeat may hold
    finally:
        writer.close()
        owner.close()
