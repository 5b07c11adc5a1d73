"""Placement: idempotence, balance, refusals with advice, and accounting of ends."""

from collections import Counter

import pytest

from tandem.messages.membership import Goodbye, StatusQuery
from tandem.messages.placement import Placed, PlaceRefused


@pytest.fixture
def pools(cluster):
    """Two prefill and two decode nodes."""
    for name, role in [("p0", "prefill"), ("p1", "prefill"), ("d0", "decode"), ("d1", "decode")]:
        cluster.join(name, role)
    return cluster


def placed(answers) -> Placed:
    (answer,) = answers
    assert isinstance(answer, Placed)
    return answer


def refused(answers) -> PlaceRefused:
    (answer,) = answers
    assert isinstance(answer, PlaceRefused)
    return answer


def test_the_same_place_has_the_same_answer(pools) -> None:
    first = placed(pools.place(1))
    placed(pools.place(2))
    assert placed(pools.place(1)) == first


def test_a_later_attempt_keeps_its_age_and_silences_the_earlier(pools) -> None:
    first = placed(pools.place(1))
    placed(pools.place(2))
    second = placed(pools.place(1, attempt=2, num_output_tokens=5))
    assert second.attempt == 2
    assert second.sequence == first.sequence
    assert pools.place(1, attempt=1) == []


def test_idle_nodes_take_turns(pools) -> None:
    answers = [placed(pools.place(i)) for i in range(8)]
    assert Counter(a.prefill.node_id for a in answers) == {"p0": 4, "p1": 4}
    assert Counter(a.decode.node_id for a in answers) == {"d0": 4, "d1": 4}
    assert [a.sequence for a in answers] == sorted({a.sequence for a in answers})


def test_the_less_loaded_node_of_each_pool_is_taken(pools) -> None:
    pools.beat("p0", num_prefill_tokens_waiting=5000)
    pools.beat("d0", num_decode_running=7, used=50)
    answers = [placed(pools.place(i)) for i in range(4)]
    assert {a.prefill.node_id for a in answers} == {"p1"}
    assert {a.decode.node_id for a in answers} == {"d1"}


def test_placements_count_until_a_heartbeat_shows_them_or_they_end(pools) -> None:
    long = placed(pools.place(1, num_prompt_tokens=900))
    others = [placed(pools.place(i)).prefill.node_id for i in (2, 3)]
    assert long.prefill.node_id not in others
    pools.end(1)
    assert placed(pools.place(4)).prefill.node_id == long.prefill.node_id


def test_a_heartbeat_right_after_a_placement_does_not_hide_it(pools) -> None:
    first = placed(pools.place(1, num_prompt_tokens=900))
    pools.beat(first.prefill.node_id)
    assert placed(pools.place(2)).prefill.node_id != first.prefill.node_id
    pools.pass_time(1.0)
    for node in ("p0", "p1"):
        pools.beat(node)
    again = {placed(pools.place(i)).prefill.node_id for i in (3, 4)}
    assert again == {"p0", "p1"}


def test_a_draining_node_gets_no_new_work(pools) -> None:
    pools.beat("d0", draining=True)
    assert {placed(pools.place(i)).decode.node_id for i in range(4)} == {"d1"}
    pools.beat("d1", draining=True)
    answer = refused(pools.place(9))
    assert answer.code == "no_decode_node"
    assert "2 draining" in answer.message


def test_without_nodes_the_refusal_says_what_to_start(cluster) -> None:
    answer = refused(cluster.place(1))
    assert (answer.code, answer.retry_after_s) == ("no_decode_node", 5.0)
    assert "scripts/launch_decode" in answer.message
    cluster.join("d0", "decode")
    answer = refused(cluster.place(2))
    assert answer.code == "no_prefill_node"
    assert "scripts/launch_prefill" in answer.message


def test_a_node_that_is_down_gets_nothing(pools) -> None:
    pools.send("d1", Goodbye(node_id="d1", incarnation=1, epoch=pools.epochs["d1"]))
    assert {placed(pools.place(i)).decode.node_id for i in range(4)} == {"d0"}


def test_right_after_a_start_nobody_is_refused_for_lack_of_nodes(cluster) -> None:
    cluster.now -= 9  # one second after the start
    assert cluster.place(1) == []
    cluster.now += 2
    assert refused(cluster.place(1)).code == "no_decode_node"


def test_a_mixed_node_serves_alone_by_local_prefill(cluster) -> None:
    cluster.join("m0", "mixed")
    answer = placed(cluster.place(1))
    assert (answer.prefill, answer.decode.node_id) == (None, "m0")


def test_a_mixed_node_counts_for_both_pools(cluster) -> None:
    cluster.join("m0", "mixed")
    cluster.join("p0", "prefill")
    pairs = {
        (a.prefill and a.prefill.node_id, a.decode.node_id)
        for a in (placed(cluster.place(i)) for i in range(4))
    }
    assert pairs == {("p0", "m0"), (None, "m0")}


def test_a_request_that_no_pool_can_hold_is_refused_with_numbers(cluster) -> None:
    cluster.join("p0", "prefill")
    cluster.join("d0", "decode", num_pages=32)
    answer = refused(cluster.place(1, num_prompt_tokens=500, max_output_tokens=13))
    assert (answer.code, answer.retry_after_s) == ("too_few_pages", None)
    for part in ("513", "500", "13", "32 pages of 16", "512", "d0", "max_tokens"):
        assert part in answer.message
    placed(cluster.place(2, num_prompt_tokens=500, max_output_tokens=12))


def test_a_prompt_that_no_prefill_pool_can_hold_is_refused(cluster) -> None:
    cluster.join("p0", "prefill", num_pages=2)
    cluster.join("d0", "decode")
    answer = refused(cluster.place(1, num_prompt_tokens=33))
    assert answer.code == "too_few_pages"
    assert "prefill pool (p0)" in answer.message


def test_a_request_beyond_the_context_is_refused_with_numbers(pools) -> None:
    answer = refused(pools.place(1, num_prompt_tokens=4000, max_output_tokens=97))
    assert answer.code == "context_too_long"
    for part in ("4000", "97", "4097", "4096"):
        assert part in answer.message


def test_unknown_sla_class_lists_the_known_ones(pools) -> None:
    answer = refused(pools.place(1, sla_class="gold"))
    assert answer.code == "unknown_sla_class"
    for name in ("gold", "interactive", "standard", "batch"):
        assert name in answer.message


def test_targets_come_from_the_class_and_own_ones_are_clamped(pools) -> None:
    assert placed(pools.place(1)).targets.ttft_ms == 2000
    assert placed(pools.place(2, sla_class="interactive")).targets.tpot_ms == 50
    own = placed(pools.place(3, sla_class="batch", ttft_ms=1.0, tpot_ms=70.0)).targets
    assert (own.sla_class, own.ttft_ms, own.tpot_ms) == ("batch", 500.0, 70.0)


def test_an_unknown_gateway_is_not_answered(pools) -> None:
    assert pools.place(1, gateway_id="stranger") == []
    assert pools.place(1, incarnation=8) == []


def test_an_ended_request_is_not_placed_again(pools) -> None:
    placed(pools.place(1))
    pools.end(1)
    assert pools.place(1) == []


def test_ends_are_counted_once_per_class(pools) -> None:
    for number, changes in enumerate(
        [{}, {"sla_attained": False}, {"reason": "failed", "sla_attained": False}]
    ):
        placed(pools.place(number))
        for _ in range(3):
            assert pools.end(number, **changes).request_id == number.to_bytes(16, "big")
    pools.end(7, sla_class="gold")
    ((_, status),) = pools.send("operator", StatusQuery())
    counts = {c.targets.sla_class: c for c in status.classes}["standard"]
    assert (counts.num_ended, counts.num_attained, counts.num_failed) == (3, 1, 1)
    assert status.num_live_requests == 0


def test_requests_of_a_dead_gateway_are_forgotten(pools) -> None:
    placed(pools.place(1))
    pools.pass_time(4.0)
    ((_, status),) = pools.send("operator", StatusQuery())
    assert (status.num_live_requests, status.gateways) == (0, ())


def test_failed_nodes_are_avoided_by_the_next_attempt(pools) -> None:
    first = placed(pools.place(1))
    failed = (first.prefill.node_id, first.decode.node_id)
    for attempt in range(2, 6):
        again = placed(pools.place(1, attempt=attempt, avoid=failed))
        assert again.prefill.node_id not in failed
        assert again.decode.node_id not in failed


def test_a_suspect_has_its_decode_node_to_itself_while_it_lives(pools) -> None:
    for number in range(3):
        placed(pools.place(number))
    for name, running in (("d0", 2), ("d1", 1), ("p0", 0), ("p1", 0)):
        pools.beat(name, num_decode_running=running)
    pools.join("d2", "decode")
    suspect = placed(pools.place(9, attempt=3, num_deaths=2, avoid=("d0",)))
    assert suspect.decode.node_id == "d2"
    others = [placed(pools.place(i)).decode.node_id for i in range(10, 20)]
    assert "d2" not in others
    pools.end(9, attempt=3)
    others = [placed(pools.place(i)).decode.node_id for i in range(20, 24)]
    assert "d2" in others


def test_one_death_makes_no_suspect(pools) -> None:
    name = placed(pools.place(1, attempt=2, num_deaths=1)).decode.node_id
    placed(pools.place(2))
    assert placed(pools.place(3)).decode.node_id == name


def test_a_move_prefills_on_the_node_that_drains(pools) -> None:
    first = placed(pools.place(1))
    pools.beat(first.decode.node_id, draining=True)
    (moved,) = pools.place(1, attempt=2, num_output_tokens=7, move_from=first.decode.node_id)
    assert moved.prefill == first.decode
    assert moved.decode.node_id not in (first.decode.node_id, first.prefill.node_id)
    assert moved.sequence == first.sequence


def test_without_another_decode_node_nothing_moves_and_the_old_attempt_lives(pools) -> None:
    first = placed(pools.place(1))
    for name in ("d0", "d1"):
        pools.beat(name, draining=True)
    answer = refused(pools.place(1, attempt=2, move_from=first.decode.node_id))
    assert (answer.code, answer.attempt) == ("no_decode_node", 2)
    assert pools.place(1) == [first]


def test_what_a_node_decodes_counts_until_it_ends_or_moves(pools) -> None:
    """A node that says that it has nothing is not believed while its requests live."""
    names = [placed(pools.place(i)).decode.node_id for i in range(6)]
    assert Counter(names) == {"d0": 3, "d1": 3}
    for number, name in enumerate(names):
        if name == "d0":
            pools.end(number)
    pools.pass_time(0.6)
    for name in ("p0", "p1", "d0", "d1"):
        pools.beat(name)
    assert [placed(pools.place(i)).decode.node_id for i in (10, 11, 12)] == ["d0"] * 3


def test_an_end_of_an_earlier_epoch_takes_nothing_off_the_node_that_came_back(cluster) -> None:
    cluster.join("p0", "prefill")
    cluster.join("d0", "decode")
    for number in (1, 2, 3):
        placed(cluster.place(number))
    cluster.join("d0", "decode", incarnation=2)
    for number in (1, 2, 3):
        cluster.end(number)
    for number in (4, 5):
        placed(cluster.place(number))
    cluster.join("d1", "decode")
    cluster.pass_time(0.6)
    cluster.beat("d0", incarnation=2)  # it has not begun with them
    names = [placed(cluster.place(number)).decode.node_id for number in (6, 7)]
    assert names == ["d1", "d1"]
