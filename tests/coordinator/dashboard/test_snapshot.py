"""The state of members at one instant: roles, rates over ten seconds, memory, what went down."""

import msgspec
import pytest

from tandem.messages.membership import Goodbye, RoleWeights, SetWeights
from tandem.messages.operations import Snapshot


def nodes(world):
    return {node.node_id: node for node in world.snapshot().nodes}


def test_a_snapshot_survives_json(world) -> None:
    world.serve(1)
    world.seconds(2)
    snapshot = world.snapshot()
    assert msgspec.json.decode(msgspec.json.encode(snapshot), type=Snapshot) == snapshot
    assert (snapshot.model, snapshot.max_model_len) == ("demo", 4096)
    assert [gateway.gateway_id for gateway in snapshot.gateways] == ["gw"]
    assert snapshot.uptime_s == pytest.approx(12.0)


def test_rates_are_differences_of_counters_over_ten_seconds(world) -> None:
    for second in range(15):
        world.cluster.beat(
            "d0", num_tokens_out=100 * second, busy_s=0.25 * second, transfer_bytes=0
        )
        world.cluster.beat("p0", transfer_bytes=5000 * second, num_transfers_done=second)
        world.seconds()
    found = nodes(world)
    assert found["d0"].tokens_per_s == pytest.approx(100.0)
    assert found["d0"].busy_share == pytest.approx(0.25)
    assert found["p0"].transfer_bytes_per_s == pytest.approx(5000.0)
    assert found["p0"].num_transfers_done == 14
    assert world.snapshot().rates.output_tokens == pytest.approx(100.0)
    world.seconds(12)  # silent for as long
    assert nodes(world)["d0"].tokens_per_s == 0.0
    assert nodes(world)["d0"].busy_share is None


def test_memory_in_use_and_the_waste_of_last_pages(world) -> None:
    world.cluster.beat("d0", used=4, num_held_pages=4, num_held_tokens=40)
    world.seconds()
    found = nodes(world)
    assert found["d0"].useful_share == pytest.approx(40 / 64)
    assert found["d0"].last_page_waste == pytest.approx(24 / 64)
    assert found["d0"].pages is not None and found["d0"].pages.active == 4
    assert found["p0"].useful_share is None


def test_roles_and_states(world) -> None:
    cluster = world.cluster
    cluster.join("m0", "mixed")
    cluster.join("d1", "decode")
    weights = RoleWeights(prefill=0.0, decode=1.0)
    cluster.send("operator", SetWeights(name="m0", weights=weights, force=True))
    cluster.beat("d1", draining=True)
    world.seconds()
    found = nodes(world)
    assert {name: node.role for name, node in found.items()} == {
        "p0": "prefill", "d0": "decode", "m0": "decode", "d1": "decode",
    }  # fmt: skip
    assert found["d1"].state == "draining"
    balance = world.snapshot().balance
    assert (balance.num_prefill, balance.num_decode, balance.num_mixed) == (1, 2, 0)
    assert balance.mode == "observe" and balance.cooldown_s is None
    assert "no change of roles" in balance.explanation


def test_a_node_that_died_is_shown_for_a_minute_and_one_that_left_is_not(world) -> None:
    cluster = world.cluster
    cluster.join("d1", "decode")
    world.seconds()
    cluster.core.members.nodes["d1"].last_seen = -1e9
    epoch = cluster.epochs["p0"]
    cluster.send("p0", Goodbye(node_id="p0", incarnation=1, epoch=epoch))
    world.seconds()
    found = nodes(world)
    assert found["d1"].state == "down" and "p0" not in found
    assert world.snapshot().balance.num_decode == 1
    texts = [(event.kind, event.text) for event in world.observer.events.after(0)]
    assert any("node d1" in text and "no heartbeat" in text for _, text in texts)
    world.seconds(60)
    assert "d1" not in nodes(world)
    cluster.join("d1", "decode")
    world.seconds()
    assert nodes(world)["d1"].state == "ok"


def test_counts_of_requests_are_rates(world) -> None:
    for number in range(5):
        world.serve(number)
    world.serve(9, reason="failed", code="internal", sla_attained=False)
    world.seconds(2)
    rates = world.snapshot().rates
    assert (rates.requests, rates.goodput, rates.failed) == (3.0, 2.5, 0.5)
    assert rates.input_tokens == pytest.approx(300.0)
    world.seconds(12)
    assert world.snapshot().rates.requests == 0.0
