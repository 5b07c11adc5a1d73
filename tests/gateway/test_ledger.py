"""The ledger: one undisturbed life, attempts, ends, acknowledgements, and chaos."""

import pytest

from tandem.messages.common import TokenLogprobs
from tandem.messages.placement import Place, RequestEnded
from tandem.messages.serving import (
    Decode,
    Prefill,
)

# --- an undisturbed life ----------------------------------------------------------------------


def test_an_undisturbed_request(world) -> None:
    world.submit(params={"max_tokens": 6})
    world.run(12)
    (accepted,) = world.accepted()
    assert (accepted.label, accepted.seed, accepted.num_prompt_tokens) == ("label 1", 7, 5)
    assert accepted.model_fingerprint == "fingerprint"
    assert len(world.ids()) == 6
    done = world.done()
    assert (done.reason, done.sla_class, done.sla_attained) == ("length", "standard", True)
    assert (done.usage.num_prompt_tokens, done.usage.num_output_tokens) == (5, 6)
    assert done.usage.num_cached_tokens == 2
    assert [(e.reason, e.num_output_tokens) for e in world.ends] == [("length", 6)]
    assert (len(world.ledger), world.ledger.num_prompt_tokens) == (0, 0)
    assert not world.cancels()


def test_both_commands_go_out_at_once_with_the_same_spec(world) -> None:
    world.submit()
    world.coordinate()
    commands = {type(m): (ref.node_id, m) for ref, m in world.to_nodes}
    assert commands[Prefill][0] == "p0"
    assert commands[Decode][0] == "d0"
    assert commands[Prefill][1].spec == commands[Decode][1].spec
    assert commands[Decode][1].prefill == world.nodes["p0"].ref
    assert commands[Decode][1].spec.prompt_ids.array.tolist() == [0, 1, 2, 3, 4]


def test_without_a_prefill_node_only_decode_is_asked(world) -> None:
    world.submit()
    world.coordinate(prefill=None)
    assert [type(m) for _, m in world.to_nodes] == [Decode]
    world.run(12)
    assert world.done().reason == "length"


def test_the_timeline_is_on_the_gateways_clock(world) -> None:
    world.now = 50.0
    world.submit()
    world.tick(0.2)
    world.coordinate()
    world.tick(1.0)
    world.run(12)
    line = world.done().timeline
    assert line.received_unix_s == 1e9
    assert line.placed_s == pytest.approx(0.2)
    assert line.prefill_start_s == pytest.approx(0.21)
    assert line.first_token_s == pytest.approx(1.2)
    assert line.transfer_end_s == pytest.approx(0.23)
    assert line.decode_start_s == pytest.approx(0.24)
    assert line.finished_s == pytest.approx(1.7)
    assert (line.prefill_node, line.decode_node) == ("p0", "d0")
    assert (line.transfer_bytes, line.num_attempts) == (1000, 1)


@pytest.mark.parametrize(("delay_s", "attained"), [(1.9, True), (2.1, False)])
def test_sla_is_attained_by_what_the_client_saw(world, delay_s, attained) -> None:
    world.submit()
    world.coordinate()
    world.tick(delay_s)
    world.run(12)
    assert world.done().sla_attained is attained
    assert world.ends[0].sla_attained is attained


def test_a_slow_stream_misses_its_sla_although_its_first_token_was_early(world) -> None:
    world.submit(params={"max_tokens": 3})
    for _ in range(6):
        world.run(1)
        world.tick(0.4)
    assert world.done().timeline.first_token_s < 1
    assert not world.done().sla_attained


def test_logprobs_travel_with_their_tokens(world) -> None:
    world.submit(params={"logprobs": 0})
    world.run(12)
    logprobs = [each for output in world.outputs() for each in output.logprobs]
    assert logprobs == [TokenLogprobs(logprob=-float(i)) for i in range(6)]


def test_many_tokens_at_once_make_several_messages(world) -> None:
    world.submit(params={"max_tokens": 200})
    world.coordinate()
    world.deliver()
    node = world.nodes["d0"]
    world.emit(node, world.tokens(1, 0, range(10, 210)))
    assert [len(o.token_ids) for o in world.outputs()] == [64, 64, 64, 8]
    assert len(world.text()) == 200
    assert world.ids() == list(range(10, 210))


# --- tokens and acknowledgements --------------------------------------------------------------


def test_tokens_beyond_a_gap_wait_and_are_not_acknowledged(world) -> None:
    world.submit()
    world.coordinate()
    node = world.nodes["d0"]
    world.emit(node, world.tokens(1, 2, [12, 13]))
    assert world.ids() == []
    assert world.last_ack().taken[0].next_index == 0
    world.emit(node, world.tokens(1, 0, [10, 11]))
    assert world.ids() == [10, 11, 12, 13]
    assert world.last_ack().taken[0].next_index == 4


def test_an_ending_before_its_tokens_waits_for_them(world) -> None:
    world.submit()
    world.coordinate()
    node = world.nodes["d0"]
    world.emit(node, world.ending(1, 2, "stop"))
    assert world.last_ack().ended == (((1).to_bytes(16, "big"), 1),)
    assert len(world.ledger) == 1
    world.emit(node, world.tokens(1, 0, [10, 11]))
    assert world.ids() == [10, 11]
    assert world.done().reason == "stop"


def test_token_zero_of_a_prefill_node_is_taken_and_its_attempt_goes_on(world) -> None:
    """Its ending may still come: only tokens are acknowledged, until the attempt is over."""
    world.submit(params={"max_tokens": 2})
    world.coordinate()
    node = world.nodes["p0"]
    world.emit(node, world.tokens(1, 0, [10]))
    assert [t.next_index for t in world.last_ack().taken] == [1]
    assert world.last_ack().ended == ()
    world.emit(world.nodes["d0"], world.tokens(1, 1, [11]), world.ending(1, 2, "length"))
    assert world.done().reason == "length"
    world.emit(node, world.tokens(1, 0, [10]))
    assert world.last_ack().ended == (((1).to_bytes(16, "big"), 1),)


def test_unknown_requests_are_acknowledged_so_that_nodes_forget(world) -> None:
    node = world.nodes["d0"]
    world.emit(
        node,
        world.tokens(3, 5, [1, 2], number=7),
        world.ending(1, 4, "stop", number=8),
    )
    ack = world.last_ack()
    assert [(t.request_id[-1], t.attempt, t.next_index) for t in ack.taken] == [(7, 3, 7)]
    assert [(r[-1], a) for r, a in ack.ended] == [(7, 3), (8, 1)]
    assert world.to_client == []


def test_a_node_that_does_not_serve_the_request_is_not_believed(world) -> None:
    stranger = world.add_node("x0")
    world.submit()
    world.coordinate()
    world.emit(stranger, world.tokens(1, 0, [10]))
    world.emit(stranger, world.ending(1, 0, "stop"))
    assert world.ids() == []
    assert len(world.ledger) == 1


def test_an_emission_in_another_nodes_name_is_dropped(world) -> None:
    world.submit()
    world.coordinate()
    impostor = world.nodes["p0"]
    honest, impostor.ref = impostor.ref, world.nodes["d0"].ref
    message = impostor.message(world.tokens(1, 0, [10]))
    impostor.ref = honest
    world.say(impostor, message)
    assert world.ids() == []
    assert world.ledger.num_dropped == 1


def test_a_node_that_changes_its_mind_loses_the_attempt(world) -> None:
    world.submit()
    world.coordinate()
    node = world.nodes["d0"]
    world.emit(node, world.tokens(1, 0, [10, 11]))
    world.emit(node, world.tokens(1, 1, [19]))
    place = world.question()
    assert (place.attempt, place.num_output_tokens) == (2, 2)
    assert world.ids() == [10, 11]


def test_tokens_beyond_max_tokens_are_not_delivered(world) -> None:
    world.submit(params={"max_tokens": 2})
    world.coordinate()
    node = world.nodes["d0"]
    world.emit(node, world.tokens(1, 0, [10, 11, 12, 13]))
    assert world.ids() == [10, 11]


def test_where_token_zero_is_the_end_the_decode_node_is_told(world) -> None:
    world.submit()
    world.coordinate()
    world.deliver()
    node = world.nodes["p0"]
    end = world.ending(1, 1, "stop")
    world.emit(node, world.tokens(1, 0, [3]), end)
    assert world.done().reason == "stop"
    assert world.cancels() == {("d0", 1)}


# --- resends ----------------------------------------------------------------------------------


def test_what_is_not_acknowledged_is_sent_again(world) -> None:
    world.submit()
    world.coordinate()
    world.to_nodes.clear()  # both commands are lost
    world.tick(0.6)
    assert {type(m) for _, m in world.to_nodes} == {Prefill, Decode}
    world.run(12)
    assert world.done().reason == "length"
    world.to_nodes.clear()
    world.tick(10)
    assert not world.to_nodes
    assert not world.to_coordinator


def test_place_and_the_end_report_are_sent_until_answered(world) -> None:
    world.submit()
    world.to_coordinator.clear()
    world.tick(0.6)
    assert [type(m) for m in world.to_coordinator] == [Place]
    world.do(world.ledger.cancel(b"client", (1).to_bytes(16, "big"), world.now))
    world.to_coordinator.clear()
    world.tick(0.6)
    assert [type(m) for m in world.to_coordinator] == [RequestEnded]
    world.coordinate()
    world.tick(5)
    assert world.to_coordinator == []


def test_a_cancel_is_sent_until_acknowledged(world) -> None:
    world.submit()
    world.coordinate()
    world.deliver()
    world.do(world.ledger.cancel(b"client", (1).to_bytes(16, "big"), world.now))
    assert world.done().reason == "cancelled"
    world.to_nodes.clear()
    world.tick(0.6)
    assert world.cancels() == {("p0", 1), ("d0", 1)}
    world.deliver()
    world.tick(5)
    assert not world.cancels()
    assert all(not node.specs for node in world.nodes.values())


# --- ends -------------------------------------------------------------------------------------


def test_a_client_cannot_cancel_what_is_not_its_own(world) -> None:
    world.submit()
    world.do(world.ledger.cancel(b"somebody else", (1).to_bytes(16, "big"), world.now))
    assert len(world.ledger) == 1


def test_a_client_that_is_gone_is_sent_nothing_and_its_requests_end(world) -> None:
    world.submit(1)
    world.submit(2, client=b"other")
    world.coordinate()
    num_said = len(world.to_client)
    world.do(world.ledger.client_gone(b"client", world.now))
    assert len(world.to_client) == num_said
    assert len(world.ledger) == 1
    assert world.cancels() == {("p0", 1), ("d0", 1)}


def test_the_deadline_ends_a_request_in_any_state(world) -> None:
    world.submit(1, deadline_s=1.0)
    world.submit(2, deadline_s=1.0)
    world.coordinate()
    world.submit(3, deadline_s=1.0)
    world.tick(0.9)
    world.tick(0.2)
    for number in (1, 2, 3):
        done = world.done(number)
        assert (done.reason, done.code) == ("failed", "deadline_exceeded")
        assert not done.sla_attained
    assert "1 s" in world.done(1).message


def test_nodes_are_told_how_much_of_the_deadline_is_left(world) -> None:
    world.submit(deadline_s=10.0)
    world.tick(4.0)
    world.coordinate()
    assert {m.spec.deadline_s for _, m in world.to_nodes} == {6.0}


def test_when_the_gateway_stops_every_request_has_an_end(world) -> None:
    world.submit(1)
    world.coordinate()
    world.submit(2)
    world.do(world.ledger.end_all(world.now))
    assert [world.done(n).code for n in (1, 2)] == ["unavailable", "unavailable"]
    assert world.cancels() == {("p0", 1), ("d0", 1)}
    assert len(world.ledger) == 0


def test_a_stop_string_cuts_text_and_tokens_and_cancels(world, expected) -> None:
    text = world.text(99)
    stop = text[2:4]
    world.submit(params={"max_tokens": 50, "stop": (stop,)})
    world.run(4)
    done = world.done()
    assert (done.reason, done.stop_string) == ("stop", stop)
    assert world.text() == text[:2]
    assert world.ids() == expected[:4]
    assert done.usage.num_output_tokens == 4
    assert all(not node.specs for node in world.nodes.values())


def test_text_held_for_a_stop_string_comes_at_the_end(world, expected) -> None:
    text = world.text(99)
    world.submit(params={"stop": (text[-1] + "?",)})
    world.run(12)
    assert world.text() == text
    assert world.ids() == expected
    assert world.done().stop_string is None


def test_stop_tokens_are_delivered_without_text(world) -> None:
    world.submit(params={"stop_token_ids": (11,)})
    world.coordinate()
    node = world.nodes["d0"]
    end = world.ending(1, 2, "stop")
    world.emit(node, world.tokens(1, 0, [10, 11]), end)
    assert world.ids() == [10, 11]
    assert len(world.text()) == 1


def test_without_a_coordinator_a_request_fails_with_advice(world) -> None:
    world.submit()
    world.tick(29)
    assert len(world.ledger) == 1
    world.tick(2)
    done = world.done()
    assert (done.code, done.reason) == ("unavailable", "failed")
    assert "scripts/launch_coordinator" in done.message


def test_a_refused_placement_ends_the_request_with_its_reason(world) -> None:
    world.submit()
    world.refuse(world.question(), "no_decode_node", retry_after_s=5.0)
    done = world.done()
    assert (done.code, done.message, done.retry_after_s) == ("no_decode_node", "why", 5.0)


def test_the_report_of_an_end_has_the_requests_own_values(world) -> None:
    world.submit(tenant="alice", priority=3, params={"max_tokens": 6})
    world.run(12)
    (report,) = world.ends
    assert (report.tenant, report.priority, report.num_prompt_tokens) == ("alice", 3, 5)
    assert report.num_cached_tokens == 2
    assert report.targets is not None and report.targets.sla_class == "standard"
    assert report.timeline == world.done().timeline
    assert (report.code, report.message) == (None, None)
    assert report.max_itl_ms == pytest.approx(100.0)  # a round of the world


def test_the_longest_wait_between_deliveries_is_kept(world) -> None:
    world.submit(params={"max_tokens": 3})
    world.coordinate()
    for index, gap_s in enumerate((0.5, 0.2, 0.7)):
        world.tick(gap_s)
        world.emit(world.nodes["d0"], world.tokens(1, index, [11]))
    world.emit(world.nodes["d0"], world.ending(1, 3, "length"))
    world.coordinate()
    assert world.ends[0].max_itl_ms == pytest.approx(700.0)


def test_a_refusal_is_reported_with_its_code_and_words(world) -> None:
    world.submit()
    world.refuse(world.question(), "overloaded")
    world.coordinate()
    (report,) = world.ends
    assert (report.reason, report.code, report.message) == ("failed", "overloaded", "why")
    assert report.targets is None and report.max_itl_ms is None
