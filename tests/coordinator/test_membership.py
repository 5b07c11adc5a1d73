"""Admission, epochs, leases, replacement and the refusal of members that do not fit."""

import msgspec
import pytest

from tandem.messages.membership import (
    Goodbye,
    HeartbeatAck,
    NodeRefused,
    NodeWelcome,
    Rejoin,
    StatusQuery,
)
from tandem.messages.placement import GatewayRefused, GatewayWelcome, NodeDown


def test_every_admission_has_a_higher_epoch(cluster) -> None:
    epochs = [cluster.join(f"n{i}", "decode").epoch for i in range(5)]
    epochs.append(cluster.join("n0", "decode", incarnation=2).epoch)
    assert epochs == sorted(set(epochs))


def test_a_repeated_hello_changes_nothing(cluster) -> None:
    first = cluster.join("p0", "prefill")
    assert isinstance(first, NodeWelcome)
    assert cluster.join("p0", "prefill") == first


def test_a_new_incarnation_replaces_the_old_and_gateways_hear_of_it(cluster) -> None:
    old = cluster.join("d0", "decode", incarnation=1)
    sent = cluster.send("d0", cluster.node_hello("d0", "decode", incarnation=2))
    assert (
        "gw",
        NodeDown(node_id="d0", epoch=old.epoch, reason="replaced by a newer process"),
    ) in sent
    welcome = next(m for p, m in sent if p == "d0")
    assert welcome.epoch > old.epoch


def test_two_processes_with_one_name_do_not_take_turns(cluster) -> None:
    cluster.join("d0", "decode", incarnation=1)
    cluster.join("d0", "decode", incarnation=2)
    refused = cluster.join("d0", "decode", incarnation=1)
    assert isinstance(refused, NodeRefused)
    assert "--name" in refused.reason


def test_a_silent_node_is_down_within_its_lease(cluster) -> None:
    epoch = cluster.join("d0", "decode").epoch
    for _ in range(20):
        cluster.pass_time(0.5)
        cluster.greet()
        assert isinstance(cluster.beat("d0"), HeartbeatAck)
    sent = []
    for _ in range(7):
        cluster.greet()
        sent += cluster.pass_time(0.5)
    downs = [m for _, m in sent if isinstance(m, NodeDown)]
    assert downs == [NodeDown(node_id="d0", epoch=epoch, reason="no heartbeat for 3 s")]


def test_a_missed_node_down_comes_again_with_the_next_welcome(cluster) -> None:
    epoch = cluster.join("d0", "decode").epoch
    cluster.send("d0", Goodbye(node_id="d0", incarnation=1, epoch=epoch))
    assert [d.node_id for d in cluster.greet().recent_downs] == ["d0"]
    for _ in range(61):
        cluster.pass_time(1.0)
        welcome = cluster.greet()
    assert welcome.recent_downs == ()


def test_a_pause_of_the_coordinator_costs_nobody_the_lease(cluster) -> None:
    cluster.join("d0", "decode")
    cluster.pass_time(0.5)
    cluster.now += 60
    assert not cluster._collect(cluster.core.tick(cluster.now))
    assert isinstance(cluster.beat("d0"), HeartbeatAck)


def test_goodbye_of_another_incarnation_is_dropped(cluster) -> None:
    cluster.join("d0", "decode", incarnation=5)
    goodbye = Goodbye(node_id="d0", incarnation=4, epoch=1)
    assert cluster.send("d0", goodbye) == []
    assert isinstance(cluster.beat("d0", incarnation=5), HeartbeatAck)


def test_after_a_restart_nodes_are_asked_to_rejoin_above_their_old_epoch(cluster) -> None:
    cluster.epochs["d0"] = 1_500_000
    assert isinstance(cluster.beat("d0"), Rejoin)
    assert cluster.join("d0", "decode").epoch > 1_500_000


def test_a_forged_epoch_does_not_use_up_the_numbers(cluster) -> None:
    cluster.epochs["x"] = 2**63 - 1
    assert isinstance(cluster.beat("x"), Rejoin)
    assert cluster.join("d0", "decode").epoch < 2**40


@pytest.mark.parametrize(
    ("field", "value", "advice"),
    [
        ("weights_fingerprint", "w2", "same model folder"),
        ("tokenizer_fingerprint", "t2", "same tokenizer"),
        ("dtype", "bfloat16", "--dtype"),
        ("max_model_len", 2048, "--max-model-len"),
        ("served_name", "other", "--served-model-name"),
        ("vocab_size", 5, "same model folder"),
    ],
)
def test_a_node_that_differs_is_refused_with_both_values(cluster, field, value, advice) -> None:
    hello = cluster.node_hello("p0", "prefill")
    cluster.join("p0", "prefill")
    other = msgspec.structs.replace(hello.model, **{field: value})
    refused = cluster.join("d0", "decode", model=other)
    assert isinstance(refused, NodeRefused)
    for part in (field, str(value), str(getattr(hello.model, field)), "p0", "d0", advice):
        assert part in refused.reason
    assert any("refused" in note for note in cluster.notes)


@pytest.mark.parametrize(("field", "value"), [("page_size", 32), ("dtype", "bfloat16")])
def test_regression_14_a_node_with_other_pages_is_refused_with_both_values(
    cluster, field, value
) -> None:
    hello = cluster.node_hello("p0", "prefill")
    cluster.join("p0", "prefill")
    other = msgspec.structs.replace(hello.layout, **{field: value})
    refused = cluster.join("d0", "decode", layout=other)
    assert isinstance(refused, NodeRefused)
    ours = str(getattr(hello.layout, field))
    for part in (field, str(value), ours, "d0", "p0", "--page-size", "--dtype"):
        assert part in refused.reason


@pytest.mark.parametrize("field", ["num_pages", "max_num_seqs"])
def test_a_node_that_can_hold_nothing_is_refused(cluster, field) -> None:
    refused = cluster.join("d0", "decode", **{field: 0})
    assert isinstance(refused, NodeRefused)
    assert field in refused.reason


def test_the_gateway_that_came_first_defines_the_model(cluster) -> None:
    hello = cluster.node_hello("p0", "prefill")
    other = msgspec.structs.replace(hello.model, tokenizer_fingerprint="t2")
    refused = cluster.join("p0", "prefill", model=other)
    assert isinstance(refused, NodeRefused)
    assert "gw" in refused.reason


def test_a_gateway_is_compared_only_by_what_it_can_know(make_cluster) -> None:
    cluster = make_cluster()
    model = cluster.node_hello("p0", "prefill").model
    cluster.join("p0", "prefill")
    other = msgspec.structs.replace(model, dtype="unknown", max_model_len=99)
    assert isinstance(cluster.greet(model=other), GatewayWelcome)
    different = msgspec.structs.replace(model, weights_fingerprint="w2")
    refused = cluster.greet("gw2", model=different)
    assert isinstance(refused, GatewayRefused)
    assert "w1" in refused.reason
    assert "w2" in refused.reason


def test_when_all_have_left_another_model_may_come(make_cluster) -> None:
    cluster = make_cluster()
    hello = cluster.node_hello("p0", "prefill")
    epoch = cluster.join("p0", "prefill").epoch
    other = msgspec.structs.replace(hello.model, weights_fingerprint="w2")
    assert isinstance(cluster.join("d0", "decode", model=other), NodeRefused)
    cluster.send("p0", Goodbye(node_id="p0", incarnation=1, epoch=epoch))
    assert isinstance(cluster.join("d0", "decode", model=other), NodeWelcome)


def test_the_only_node_may_come_back_with_another_model(make_cluster) -> None:
    cluster = make_cluster()
    hello = cluster.node_hello("p0", "prefill")
    cluster.join("p0", "prefill")
    other = msgspec.structs.replace(hello.model, weights_fingerprint="w2")
    assert isinstance(cluster.join("p0", "prefill", incarnation=2, model=other), NodeWelcome)


def test_status_shows_members_loads_and_classes(cluster) -> None:
    cluster.join("d0", "decode")
    cluster.beat("d0", num_decode_running=3)
    cluster.place(1)
    ((peer, status),) = cluster.send("operator", StatusQuery())
    assert peer == "operator"
    assert [(n.node_id, n.load.num_decode_running) for n in status.nodes] == [("d0", 3)]
    assert [g.gateway_id for g in status.gateways] == ["gw"]
    assert [c.targets.sla_class for c in status.classes] == ["interactive", "standard", "batch"]
    assert status.model is not None
    assert status.model.served_name == "demo"


def test_membership_changes_are_noted_once(cluster) -> None:
    cluster.join("d0", "decode")
    cluster.join("d0", "decode")
    cluster.beat("d0", draining=True)
    cluster.beat("d0", draining=True)
    assert [sum(word in n for n in cluster.notes) for word in ("d0 joined", "drains")] == [1, 1]
