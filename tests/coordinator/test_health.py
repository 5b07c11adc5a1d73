"""Down by progress, and slow but alive."""

import pytest

from tandem.messages.membership import HeartbeatAck, NodeWelcome, Rejoin
from tandem.messages.placement import NodeDown

STUCK = {"has_work": True, "step_age_s": 3.1, "predicted_step_s": 0.1}


def beat_all(cluster, times: dict[str, float], seconds: float, *, has_work: bool = True) -> None:
    """Heartbeats of all these nodes twice a second, with what their steps take, or last took."""
    for _ in range(round(seconds * 2)):
        cluster.greet()
        for name, time_s in times.items():
            num_steps = round(cluster.now * 10) * has_work
            cluster.beat(name, predicted_step_s=time_s, has_work=has_work, num_steps=num_steps)
        cluster.pass_time(0.5)


@pytest.mark.parametrize(
    ("load", "is_down"),
    [
        (STUCK, True),
        (STUCK | {"step_age_s": 3.0}, False),
        (STUCK | {"has_work": False}, False),
        (STUCK | {"predicted_step_s": 1.0}, False),
        (STUCK | {"predicted_step_s": 1.0, "step_age_s": 5.1}, True),
        (STUCK | {"predicted_step_s": 1e9, "step_age_s": 151.0}, True),
    ],
)
def test_a_node_with_work_and_without_steps_is_down_although_it_beats(
    cluster, load, is_down
) -> None:
    cluster.join("d0", "decode")
    answer = cluster.beat("d0", **load)
    assert isinstance(answer, Rejoin if is_down else HeartbeatAck)
    assert len(cluster.status().nodes) == (not is_down)


def test_gateways_hear_that_a_node_is_wedged_and_it_needs_a_hello(cluster) -> None:
    epoch = cluster.join("d0", "decode").epoch
    sent = dict(cluster.send("d0", cluster.heartbeat("d0", counts=STUCK)))
    assert isinstance(sent["gw"], NodeDown)
    assert sent["gw"].epoch == epoch
    assert sent["gw"].reason.startswith("wedged: ")
    assert cluster.place(1)[0].code == "no_decode_node"
    assert isinstance(cluster.beat("d0"), Rejoin)  # beats alone do not bring it back
    assert cluster.status().nodes == ()
    assert [d.node_id for d in cluster.status().downs] == ["d0"]
    welcome = cluster.join("d0", "decode")
    assert isinstance(welcome, NodeWelcome)
    assert welcome.epoch > epoch


def test_a_node_that_stays_slower_than_its_peers_gets_less_work(cluster) -> None:
    cluster.join("p0", "prefill")
    times = {"p0": 0.5, "d0": 0.02, "d1": 0.02, "d2": 0.2}
    for name in ("d0", "d1", "d2"):
        cluster.join(name, "decode")
    beat_all(cluster, times, 4.5)
    assert not any(n.is_slow for n in cluster.status().nodes)
    beat_all(cluster, times, 1.5)
    assert [n.node_id for n in cluster.status().nodes if n.is_slow] == ["d2"]
    assert sum("d2 is slow" in note for note in cluster.notes) == 1
    chosen = [cluster.place(i)[0].decode.node_id for i in range(15)]
    assert chosen.count("d2") <= 2  # less than a fifth
    beat_all(cluster, times | {"d2": 0.04}, 0.5)
    assert not any(n.is_slow for n in cluster.status().nodes)
    assert any("keeps up" in note for note in cluster.notes)


def test_a_passing_delay_makes_nobody_slow(cluster) -> None:
    times = {"d0": 0.02, "d1": 0.02}
    for name in times:
        cluster.join(name, "decode")
    for _ in range(4):
        beat_all(cluster, times | {"d1": 1.0}, 3)
        beat_all(cluster, times, 0.5)
    assert not any("slow" in note for note in cluster.notes)


def test_roles_are_compared_with_their_own_kind(cluster) -> None:
    cluster.join("p0", "prefill")
    for name in ("d0", "d1", "d2"):
        cluster.join(name, "decode")
    beat_all(cluster, {"p0": 0.5, "d0": 0.02, "d1": 0.02, "d2": 0.02}, 8)
    assert not any(n.is_slow for n in cluster.status().nodes)


def test_at_most_a_third_are_slow_and_never_the_last(cluster) -> None:
    names = [f"d{i}" for i in range(7)]
    for name in names:
        cluster.join(name, "decode")
    beat_all(cluster, {n: 0.02 if i < 4 else 1.0 for i, n in enumerate(names)}, 8)
    assert [n.node_id for n in cluster.status().nodes if n.is_slow] == ["d4", "d5"]
    beat_all(cluster, {"d4": 1.0, "d5": 1.0}, 4)  # the others are silent, and down
    assert [(n.node_id, n.is_slow) for n in cluster.status().nodes] == [
        ("d4", False),
        ("d5", False),
    ]


def test_a_running_step_counts_as_long_as_it_has_taken(cluster) -> None:
    for name in ("d0", "d1"):
        cluster.join(name, "decode")
    for _ in range(14):
        cluster.beat("d0", predicted_step_s=0.02, has_work=True)
        cluster.beat("d1", predicted_step_s=0.02, has_work=True, step_age_s=2.5)
        cluster.pass_time(0.5)
    assert [n.node_id for n in cluster.status().nodes if n.is_slow] == ["d1"]


def test_what_idle_nodes_did_long_ago_makes_none_slow(cluster) -> None:
    for name in ("p0", "p1"):
        cluster.join(name, "prefill")
    beat_all(cluster, {"p0": 0.4, "p1": 0.05}, 8, has_work=False)
    assert not any("slow" in note for note in cluster.notes)


def test_a_slow_node_is_not_absolved_because_its_peers_are_idle(cluster) -> None:
    times = {"d0": 0.02, "d1": 0.5}
    for name in times:
        cluster.join(name, "decode")
    beat_all(cluster, times, 6)
    for second in range(24):
        cluster.greet()
        cluster.beat("d0", predicted_step_s=0.02, num_steps=10_000)
        cluster.beat("d1", predicted_step_s=0.5, num_steps=20_000 + second, has_work=True)
        cluster.pass_time(0.5)
    assert [n.node_id for n in cluster.status().nodes if n.is_slow] == ["d1"]


def test_a_slow_node_that_has_become_idle_gets_a_new_try(cluster) -> None:
    times = {"d0": 0.02, "d1": 0.5}
    for name in times:
        cluster.join(name, "decode")
    beat_all(cluster, times, 6)
    beat_all(cluster, times, 9, has_work=False)
    assert [n.node_id for n in cluster.status().nodes if n.is_slow] == ["d1"]
    beat_all(cluster, times, 2, has_work=False)
    assert not any(n.is_slow for n in cluster.status().nodes)
    assert any("new try" in note for note in cluster.notes)
    beat_all(cluster, times, 6)
    assert [n.node_id for n in cluster.status().nodes if n.is_slow] == ["d1"]
