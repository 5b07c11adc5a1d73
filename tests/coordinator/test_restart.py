"""A coordinator that was killed: the next one learns all it needs from nodes and gateways."""

from tandem.frames import Blob
from tandem.messages.membership import CacheDelta, HeartbeatAck, Rejoin
from tandem.messages.placement import NodeDown, PlaceRefused


def nodes_of(cluster) -> None:
    for name, role in [("p0", "prefill"), ("p1", "prefill"), ("d0", "decode"), ("d1", "decode")]:
        cluster.join(name, role)


def come_back(cluster, name: str, role: str) -> list:
    """A node's next heartbeat, and its hello where it is told to say it."""
    sent = cluster.send(name, cluster.heartbeat(name))
    if isinstance(dict(sent)[name], Rejoin):
        cluster.join(name, role)
        sent += cluster.send(name, cluster.heartbeat(name))
    return sent


def test_members_come_back_and_nobody_is_declared_down(cluster) -> None:
    nodes_of(cluster)
    before = dict(cluster.epochs)
    cluster.pass_time(0.3)
    after = cluster.restart()
    sent = []
    for _ in range(20):
        sent.append(("gw", after.greet()))
        for name, role in [
            ("p0", "prefill"), ("p1", "prefill"), ("d0", "decode"), ("d1", "decode")
        ]:  # fmt: skip
            sent += come_back(after, name, role)
        sent += after.pass_time(0.5)
    assert not [m for _, m in sent if isinstance(m, NodeDown)]
    assert all(not m.recent_downs for _, m in sent if hasattr(m, "recent_downs"))
    assert not any("down" in note for note in after.notes)
    assert all(after.epochs[name] > before[name] for name in before)
    assert len(after.status().nodes) == 4


def test_sequences_and_epochs_grow_over_restarts(cluster) -> None:
    nodes_of(cluster)
    ages = [cluster.place(i)[0].sequence for i in range(250)]
    cluster.now -= 9.9  # a tenth of a second after its start: more than one per millisecond
    after = cluster.restart()
    after.greet()
    nodes_of(after)
    ages += [after.place(i)[0].sequence for i in range(250, 300)]
    assert ages == sorted(set(ages))


def test_a_clock_that_was_set_back_is_overtaken(cluster) -> None:
    welcome = cluster.join("d0", "decode")
    cluster.now -= 60.0
    after = cluster.restart()
    assert isinstance(after.beat("d0"), Rejoin)
    again = after.join("d0", "decode")
    assert again.epoch > welcome.epoch
    assert again.coordinator_incarnation >= welcome.coordinator_incarnation
    assert after.greet().coordinator_incarnation == again.coordinator_incarnation


def test_nobody_is_refused_for_lack_of_nodes_in_the_grace(cluster) -> None:
    after = cluster.restart()
    after.greet()
    assert after.place(1) == []
    after.join("p0", "prefill")
    after.join("d0", "decode", num_pages=2)
    assert after.place(1) == []  # a larger node may still be on its way
    assert after.place(2, sla_class="gold")[0].code == "unknown_sla_class"
    after.pass_time(1.9)
    for name in ("p0", "d0"):
        after.beat(name, num_pages=64 if name == "p0" else 2)
    after.pass_time(0.2)
    assert isinstance(after.place(1)[0], PlaceRefused)


def test_an_attempt_that_is_asked_for_again_has_one_answer(cluster) -> None:
    nodes_of(cluster)
    cluster.place(1)
    after = cluster.restart()
    assert after.place(1) == []  # the gateway has not said hello yet
    after.greet()
    nodes_of(after)
    answers = after.place(1) + after.place(1) + after.place(1)
    assert len({msg.sequence for msg in answers}) == 1
    assert answers == [answers[0]] * 3
    assert after.status().num_live_requests == 1


def test_load_and_caches_come_from_heartbeats(cluster) -> None:
    after = cluster.restart()
    after.greet()
    nodes_of(after)
    after.beat("p0", num_prefill_tokens_waiting=100)
    snapshot = CacheDelta(number=40, is_snapshot=True, added=Blob(bytes(range(48))), removed=Blob())
    after.beat("p0", cache=snapshot, num_prefill_tokens_waiting=50)
    after.beat("d0", num_decode_running=7, used=60)
    (answer,) = after.place(1, prefix_hashes=Blob(bytes(range(48))))
    assert (answer.prefill.node_id, answer.decode.node_id) == ("p0", "d1")


def test_ends_of_requests_that_only_the_old_one_placed_are_counted_once(cluster) -> None:
    nodes_of(cluster)
    cluster.place(1)
    after = cluster.restart()
    after.greet()
    after.end(1)
    after.end(1)
    assert sum(c.num_ended for c in after.status().classes) == 1
    assert after.place(1) == []


def test_a_fail_over_of_a_request_that_is_not_known_is_placed(cluster) -> None:
    after = cluster.restart()
    after.greet()
    nodes_of(after)
    (answer,) = after.place(1, attempt=3, num_output_tokens=4, avoid=("p0", "d0"))
    assert (answer.prefill.node_id, answer.decode.node_id) == ("p1", "d1")
    assert isinstance(after.beat("d0"), HeartbeatAck)
