"""Client sessions: who is resumed, who is cut, and what all of them together may cost."""

import pytest

from gateway.backlog import Backlog, size_of
from gateway.clients import GRACE_S, STUCK_S
from tandem.inbox import Inbox
from tandem.messages.client import Done, Output, ResumeRefused
from tests.gateway.session_desk import Desk, accepted, done, make_desk, output, request_id


@pytest.fixture
def desk() -> Desk:
    return make_desk()


def test_what_the_ledger_says_goes_out_and_a_confirmed_end_is_forgotten(desk) -> None:
    (first,) = desk.tell(accepted())
    assert first.silence_s == 30.0
    assert desk.tell(output(0)) == [output(0)]
    (end,) = desk.tell(done(1))
    assert end.num_chars == 1
    assert desk.tick(0.1) == []
    assert desk.received(1, is_done=True) == []
    assert len(desk.sessions) == 0


def test_the_end_is_repeated_until_it_is_confirmed_or_nobody_is_there(desk) -> None:
    desk.tell(accepted())
    (end,) = desk.tell(done(0))
    assert desk.tick(1.9) == []
    assert desk.tick(0.2) == [end]
    told = sum(len(desk.tick(1.0)) for _ in range(40))
    assert 13 <= told <= 15, "the client said nothing for 30 s"
    assert not desk.cuts
    desk.tick(GRACE_S)
    assert len(desk.sessions) == 0


def test_a_client_that_cannot_be_reached_comes_back_under_another_identity(desk) -> None:
    desk.tell(accepted())
    desk.tell(output(0))
    desk.sessions.unreachable(b"c")
    assert desk.tell(output(1)) == []
    assert desk.tell(done(2)) == []
    replay = desk.resume(1, b"new")
    assert replay[0].request_id == request_id(1) and replay[1] == output(1)
    assert isinstance(replay[2], Done)
    assert {client for client, _ in desk.sent[-3:]} == {b"new"}
    assert desk.received(2, b"c", is_done=True) == [], "the old identity has nothing to say"
    assert len(desk.sessions) == 1
    assert desk.sessions.owner_of(b"new", request_id(1), desk.now) == b"c"
    assert desk.sessions.owner_of(b"c", request_id(1), desk.now) is None


def test_a_client_whose_queue_was_full_goes_on_where_it_is(desk) -> None:
    desk.tell(accepted())
    for index in range(4):
        desk.tell(output(index))
    desk.sessions.unreachable(b"c")
    desk.tell(output(4))
    assert desk.received(2) == [output(2), output(3), output(4)]


def test_finished_requests_are_resumed_within_the_grace_and_no_longer(desk) -> None:
    desk.tell(accepted())
    desk.tell(output(0))
    desk.tell(done(1))
    desk.tick(GRACE_S - 1)
    assert [type(m).__name__ for m in desk.resume(0, b"new")] == ["Accepted", "Output", "Done"]
    desk.tick(2)
    (refused,) = desk.resume(0, b"new")
    assert isinstance(refused, ResumeRefused)
    assert "`resume`" in refused.message


def test_a_request_is_resumed_only_under_its_key() -> None:
    keys = {b"c": "client/alice", b"also": "client/alice", b"thief": "client/mallory"}
    desk = make_desk(keys.get)
    desk.tell(accepted())
    desk.tell(output(0))
    (refused,) = desk.resume(0, b"thief")
    assert isinstance(refused, ResumeRefused)
    assert len(desk.resume(0, b"also")) == 2


def test_replays_are_not_to_be_had_as_often_as_they_are_asked_for(desk) -> None:
    desk.tell(accepted())
    desk.tell(output(0))
    assert len(desk.resume(0, b"new")) == 2
    assert desk.resume(0, b"new") == []
    desk.tick(0.3)
    assert len(desk.resume(0, b"new")) == 2


def test_a_silent_client_is_cut_and_learns_why(desk) -> None:
    desk.tell(accepted())
    for _ in range(3):
        desk.tick(29)
        desk.received(0)
    assert not desk.cuts
    desk.tick(31)
    desk.tick(1)
    (cut,) = desk.cuts
    assert (cut.owner, cut.request_id) == (b"c", request_id(1))
    desk.tell(done(0, reason="cancelled"))
    end = desk.resume(0, b"new")[-1]
    assert "said nothing for 30 s" in end.message


def test_a_stream_that_is_not_taken_pauses_and_is_cut_while_others_flow() -> None:
    desk = make_desk(max_backlog_bytes=4096)
    desk.tell(accepted(1), b"slow")
    desk.tell(accepted(2), b"fast")
    for index in range(40):
        desk.tell(output(index, number=1), b"slow")
        assert desk.tell(output(index, number=2), b"fast") == [output(index, number=2)]
        desk.received(index + 1, b"fast", number=2)
    num_slow = sum(client == b"slow" for client, _ in desk.sent)
    assert num_slow < 15, "what waits for a slow client stays here"
    desk.tick(0.1)
    desk.tick(STUCK_S - 1)
    assert not desk.cuts
    desk.tick(2)
    (cut,) = desk.cuts
    assert cut.request_id == request_id(1)
    assert "unacknowledged" in cut.reason


def test_who_acknowledges_goes_on_after_a_pause() -> None:
    desk = make_desk(max_backlog_bytes=4096)
    desk.tell(accepted())
    for index in range(40):
        desk.tell(output(index))
    inbox = Inbox()
    for _ in range(40):
        desk.tick(3)
        for message in [m for _, m in desk.sent if isinstance(m, Output)]:
            inbox.take(message)
        desk.received(inbox.next_index)
    assert inbox.next_index == 40
    assert not desk.cuts


def test_all_sessions_together_are_bounded() -> None:
    per_piece = size_of(output(0))
    desk = make_desk(max_bytes=20 * per_piece, max_finished=2)
    for number in (1, 2, 3):
        desk.tell(accepted(number))
        desk.tell(output(0, number=number))
        desk.tell(done(1, number))
    desk.tick()
    assert len(desk.sessions) == 2, "the oldest finished one goes first"
    desk.tell(accepted(4))
    desk.tell(accepted(5))
    for index in range(19):
        desk.tell(output(index, number=4))
    desk.tell(output(0, number=5))
    desk.tell(output(1, number=5))
    desk.tick()
    assert len(desk.sessions) == 2
    assert [cut.request_id for cut in desk.cuts] == [request_id(4)]


def test_acknowledged_tokens_are_kept_to_a_bound_and_then_refused() -> None:
    backlog = Backlog(10 * size_of(output(0)))
    for index in range(100):
        backlog.add(output(index))
        assert backlog.next_to_send(1 << 20) == output(index)
        assert backlog.acknowledge(index + 1)
        assert not backlog.acknowledge(index + 1)
    assert backlog.num_bytes <= 10 * size_of(output(0))
    assert (backlog.num_unacknowledged_bytes, backlog.num_flying_bytes) == (0, 0)
    assert backlog.kept_from >= 90
    assert not backlog.rewind(backlog.kept_from - 1)
    assert backlog.rewind(backlog.kept_from)
    assert backlog.next_to_send(1 << 20).index == backlog.kept_from


def test_text_without_tokens_before_tokens_does_not_stop_acknowledgements() -> None:
    backlog = Backlog(keep_bytes=0)
    backlog.add(output(1000, 0, text="held"))
    backlog.add(output(1000))
    backlog.add(output(1001))
    assert [backlog.next_to_send(1 << 20) for _ in range(2)] == [
        output(1000, 0, text="held"),
        output(1000),
    ]
    assert not backlog.acknowledge(1000), "nobody can tell whether the text came"
    assert backlog.num_flying_bytes > 0
    assert backlog.acknowledge(1001)
    assert backlog.num_flying_bytes == 0
    assert backlog.num_unacknowledged_bytes == size_of(output(1001))
    assert not backlog.rewind(1000), "the text at token 1000 is forgotten"
    assert backlog.rewind(1001)


def test_a_gateway_that_stood_still_does_not_hold_it_against_its_clients(desk) -> None:
    desk.tell(accepted())
    desk.tick(20)
    desk.stand_still(60)
    assert not desk.cuts
    desk.tick(9)
    assert not desk.cuts, "29 s of silence while somebody listened"
    desk.tick(2)
    assert len(desk.cuts) == 1


def test_a_gateway_that_stood_still_does_not_take_it_for_a_stuck_reader() -> None:
    desk = make_desk(max_backlog_bytes=1)
    desk.tell(accepted())
    desk.tell(output(0))
    desk.tick(1)
    desk.stand_still(STUCK_S + 1)
    assert not desk.cuts
    desk.tick(STUCK_S)
    assert len(desk.cuts) == 1


def test_a_submit_that_comes_again_is_answered_until_its_end_is_confirmed(desk) -> None:
    desk.tell(accepted())
    assert desk.sessions.knows(b"c", "l1")
    assert not desk.sessions.knows(b"other", "l1")
    (again,) = desk.do(desk.sessions.repeat(b"c", "l1", desk.now))
    assert again.request_id == request_id(1)
    desk.sessions.unreachable(b"c")
    desk.tell(output(0))
    desk.tell(done(1))
    repeated = desk.do(desk.sessions.repeat(b"c", "l1", desk.now))
    assert [type(m).__name__ for m in repeated] == ["Accepted", "Output", "Done"]
    desk.resume(0, b"new")
    assert not desk.do(desk.sessions.repeat(b"c", "l1", desk.now))
    desk.received(1, b"new", is_done=True)
    assert not desk.sessions.knows(b"c", "l1")
