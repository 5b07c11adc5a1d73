"""Requests and the decisions about them, as the core makes them."""

import msgspec
import pytest

from coordinator.dashboard import records
from tandem.messages.common import NodeCosts
from tandem.messages.membership import RoleWeights, SetWeights
from tandem.messages.operations import RequestRecord
from tandem.messages.placement import TurnedAway

COSTS = NodeCosts(
    step_s=0.01, prefill_token_s=1e-3, prefill_context_s=0.0, decode_row_s=1e-3,
    decode_context_s=0.0, num_steps=1000,
)  # fmt: skip


def ids(world, *filters, limit: int = 10) -> list[int]:
    found = [
        msgspec.json.decode(each, type=RequestRecord)
        for each in world.observer.records.latest(limit, *filters)
    ]
    return [int(each.request_id, 16) for each in found]


def test_a_record_tells_where_why_and_how_it_ended(world) -> None:
    world.serve(7, num_output_tokens=3, max_itl_ms=31.0)
    placed, ended = world.texts(7)
    assert placed.startswith("placed: prompt on p0, tokens on d0; prefill: p0 is the only one open")
    assert ended == "ended after 3 tokens (stop); both targets were kept"
    data = world.observer.records.find((7).to_bytes(16, "big").hex())
    record = msgspec.json.decode(data, type=RequestRecord)
    assert (record.ttft_target_ms, record.max_itl_ms, record.reason) == (2000.0, 31.0, "stop")
    assert record.timeline is not None and record.timeline.decode_start_s == 0.35


def test_scores_and_predictions_are_told(make_world) -> None:
    world = make_world(nodes=("prefill",))
    for name in ("d1", "d2"):
        world.cluster.join(name, "decode")
        world.cluster.beat(name, costs=COSTS, num_decode_running=int(name == "d2"))
    world.cluster.beat("p0", costs=COSTS)
    world.serve(1)
    placed = world.texts(1)[0]
    assert "decode: d1 scores" in placed and "the lowest of 2 (up to" in placed
    assert "predicted TTFT" in placed and "predicted TPOT" in placed


def test_an_answer_that_is_repeated_is_one_decision(world) -> None:
    world.cluster.place(3)
    world.cluster.place(3)
    world.cluster.end(3)
    world.cluster.end(3)
    assert len(world.texts(3)) == 2
    assert world.snapshot().classes[1].windows["5m"].num_ended == 1
    world.cluster.place(3)  # late: it has ended
    assert world.snapshot().num_live == 0


def test_attempts_are_explained(world) -> None:
    cluster = world.cluster
    cluster.place(4)
    cluster.join("d9", "decode")
    cluster.place(4, attempt=2, avoid=("d0",), num_deaths=1, num_output_tokens=5)
    cluster.end(4, attempt=2, reason="failed", code="node_failed", message="d9 died too")
    first, why, second, end = world.texts(4)
    assert "tokens on d0" in first
    assert why == "attempt 2 after d0 failed it: 5 tokens were delivered; a node died with it"
    assert "tokens on d9" in second
    assert end == "failed after 3 tokens (node_failed): d9 died too"
    (event,) = [e for e in world.observer.events.after(0) if e.kind == "request"]
    assert event.text.endswith("failed after 3 tokens: node_failed: d9 died too")


def test_a_move_says_what_it_leaves(world) -> None:
    cluster = world.cluster
    cluster.place(5)
    cluster.join("d9", "decode")
    cluster.place(5, attempt=2, move_from="d0", num_output_tokens=2)
    assert "its gateway moves it away from d0" in world.texts(5)[1]
    assert "d0 has its KV; decode: d9" in world.texts(5)[2]


def test_waiting_for_room_is_told_with_its_reason(make_world) -> None:
    world = make_world(nodes=("prefill",), max_queued_requests_per_node=1)
    cluster = world.cluster
    cluster.join("d1", "decode", num_pages=1000, max_num_seqs=1)
    for number in range(100, 110):  # endings give a pace
        cluster.place(number)
        cluster.end(number)
    for number in (0, 1, 2, 2):
        cluster.place(number)
    assert world.snapshot().num_queued == 1
    assert world.snapshot().live[-1].decode_node is None
    cluster.now += 0.5
    cluster.send("gw", cluster.report(0))
    held, placed = world.texts(2)
    assert held.startswith("held until there is room: the queues of all decode nodes are full")
    assert placed.startswith("placed after 500 ms of waiting for room")


def test_shed_requests_are_counted_as_such_once(make_world) -> None:
    world = make_world(nodes=("prefill",), max_queued_requests_per_node=1, max_held_requests=0)
    cluster = world.cluster
    cluster.join("d1", "decode", max_num_seqs=1)
    for number in range(8):
        cluster.place(number)
    refused = [number for number in range(8) if "refused (overloaded)" in world.texts(number)[0]]
    assert refused
    for number in refused:
        answer = "no room"
        cluster.end(
            number, reason="failed", code="overloaded", message=answer, sla_class="",
            sla_attained=False, ttft_ms=None, tpot_ms=None, num_output_tokens=0,
        )  # fmt: skip
    window = next(c for c in world.snapshot().classes if c.sla_class == "standard").windows["5m"]
    assert (window.num_shed, window.num_ended, window.num_failed) == (len(refused), 0, 0)
    assert window.attainment == 0.0
    assert [e for e in world.observer.events.after(0) if e.kind == "request"] == []
    world.seconds()
    assert world.snapshot().rates.shed == len(refused)


def test_what_gateways_turn_away_is_shed_too_and_counted_once(world) -> None:
    def hello(*counts: tuple[str | None, int]) -> None:
        known = world.cluster.core.members.gateways["gw"].hello
        away = tuple(TurnedAway(sla_class=name, num_requests=num) for name, num in counts)
        world.cluster.send("gw", msgspec.structs.replace(known, turned_away=away))

    before = world.cluster.core.admission.num_shed
    for counts in ([(None, 2)], [(None, 2)], [(None, 3), ("batch", 4)]):
        hello(*counts)
    windows = {c.sla_class: c.windows["5m"].num_shed for c in world.snapshot().classes}
    assert (windows["standard"], windows["batch"], windows["interactive"]) == (3, 4, 0)
    assert world.cluster.core.admission.num_shed - before == 7
    text = world.observer._metrics.render(world.cluster.now).decode()
    assert 'outcome="shed",sla_class="batch"} 4.0' in text


def test_live_requests_are_shown_oldest_first_and_can_be_looked_up(world) -> None:
    for number in (1, 2, 3):
        world.cluster.now += 1.0
        world.cluster.place(number, tenant="alice")
    snapshot = world.snapshot()
    assert snapshot.num_live == 3
    assert [int(each.request_id, 16) for each in snapshot.live] == [1, 2, 3]
    first = snapshot.live[0]
    assert (first.tenant, first.sla_class, first.prefill_node, first.decode_node) == (
        "alice", "standard", "p0", "d0",
    )  # fmt: skip
    assert first.age_s == pytest.approx(2.0)
    found = world.observer.records.find("0" * 31 + "2")
    assert msgspec.json.decode(found, type=RequestRecord).reason is None
    assert ids(world, "live", None) == [3, 2, 1]


def test_records_are_found_by_the_beginning_of_their_id(world) -> None:
    for number in (0x1234 << 112, 0x1235 << 112, 0xAB << 120):
        world.serve(number)
    book = world.observer.records
    assert isinstance(book.find("ab000000"), bytes)
    assert book.find("ff00ff00") == []
    several = book.find("123")
    assert isinstance(several, list) and len(several) == 2


def test_lists_are_filtered_and_the_latest_comes_first(world) -> None:
    world.serve(1)
    world.serve(2, reason="failed", code="internal", sla_attained=False)
    world.serve(3, sla_attained=False, tpot_ms=900.0)
    world.serve(4, reason="length")
    assert ids(world, None, None) == [4, 3, 2, 1]
    assert ids(world, None, None, limit=2) == [4, 3]
    assert ids(world, "failed", None) == [2]
    assert ids(world, "missed", None) == [3, 2]
    assert ids(world, "stop", "standard") == [3, 1]
    assert ids(world, "stop", "batch") == []


def test_memory_is_bounded(world, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORDS", 3)
    monkeypatch.setattr(records, "MAX_LIVE", 2)
    for number in range(5):
        world.serve(number)
    assert ids(world, None, None) == [4, 3, 2]
    for number in range(10, 14):
        world.cluster.place(number)
    assert world.snapshot().num_live == 2


def test_requests_of_a_gateway_that_is_gone_are_forgotten(make_cluster, make_world) -> None:
    world = make_world()
    world.cluster.place(1)
    world.cluster.now += 40.0
    world.observer.second(world.cluster.now, world.unix_s)
    assert world.snapshot().num_live == 1
    world.cluster.greet(incarnation=10)
    world.observer.second(world.cluster.now, world.unix_s)
    assert world.snapshot().num_live == 0


def test_an_end_without_a_beginning_says_so(world) -> None:
    """As after a restart of the coordinator."""
    world.cluster.end(9, num_output_tokens=4)
    assert world.texts(9)[0].startswith("this coordinator knows nothing of how it was placed")
    assert world.texts(9)[1].startswith("ended after 4 tokens")


def test_orders_and_members_are_events(world) -> None:
    order = SetWeights(name="nobody", weights=RoleWeights(prefill=1.0, decode=0.0))
    world.cluster.send("operator", order)
    world.cluster.join("d9", "decode")
    world.cluster.send("operator", msgspec.structs.replace(order, name="d9", force=True))
    kinds = [(event.kind, event.text) for event in world.observer.events.after(0)]
    assert ("order", "node d9 turns from decode to prefill") in kinds
    assert any(kind == "member" and "node d9 joined" in text for kind, text in kinds)
    assert [e.number for e in world.observer.events.after(0)] == list(range(1, len(kinds) + 1))


def test_an_evaluation_is_told_apart(world) -> None:
    world.cluster.place(6, is_evaluation=True, max_output_tokens=0)
    world.cluster.end(
        6, is_evaluation=True, num_output_tokens=0, num_prompt_tokens=100, tpot_ms=None
    )
    placed, ended = world.texts(6)
    assert placed.startswith("placed: evaluated on p0")
    assert ended.startswith("ended after an evaluation of 100 tokens (stop)")
