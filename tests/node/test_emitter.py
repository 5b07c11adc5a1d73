"""Emission: everything reaches the gateway once it acknowledges, whatever is lost before."""

import random

import pytest

from node.emitter import MAX_MESSAGE_COST, RESEND_AFTER_S, Emitter
from tandem.codec import MAX_CONTROL_BYTES, encode
from tandem.messages.common import PrefillReport, TokenLogprobs
from tandem.messages.serving import Emission, EmissionAck, Ending, TokensTaken

PEER = b"gateway/g/1"


def key(n: int) -> tuple[bytes, int]:
    return (n.to_bytes(16, "big"), 1)


def ending(n: int, end_index: int) -> Ending:
    return Ending(request_id=key(n)[0], attempt=1, end_index=end_index, reason="stop")


class Sink:
    """A gateway that keeps what it is sent and can acknowledge it."""

    def __init__(self) -> None:
        self.tokens: dict[tuple[bytes, int], dict[int, int]] = {}
        self.ended: set[tuple[bytes, int]] = set()

    def take(self, emission: Emission) -> EmissionAck:
        for delta in emission.deltas:
            known = self.tokens.setdefault((delta.request_id, delta.attempt), {})
            for index, token_id in enumerate(delta.ids, delta.start):
                assert known.setdefault(index, token_id) == token_id
        self.ended |= {(e.request_id, e.attempt) for e in emission.endings}
        return EmissionAck(
            taken=tuple(
                TokensTaken(request_id=k[0], attempt=k[1], next_index=self.next_index(k))
                for k in self.tokens
            ),
            ended=tuple(self.ended),
        )

    def next_index(self, k: tuple[bytes, int]) -> int:
        known = self.tokens[k]
        return next(i for i in range(len(known) + 1) if i not in known)


def test_tokens_of_a_step_share_one_message_per_gateway() -> None:
    emitter = Emitter("n", 1)
    for n in range(5):
        emitter.token(PEER, key(n), 0, 100 + n, None)
    emitter.token(b"other", key(9), 3, 7, None)
    sent = dict(emitter.flush(4, 0.0))
    assert len(sent) == 2
    assert [d.ids for d in sent[PEER].deltas] == [(100,), (101,), (102,), (103,), (104,)]
    assert (sent[b"other"].deltas[0].start, sent[b"other"].epoch) == (3, 4)
    assert emitter.flush(4, 0.1) == []


def test_lossy_network_delivers_everything_and_leaves_nothing() -> None:
    rng = random.Random(7)
    emitter, sink, now = Emitter("n", 1), Sink(), 0.0
    for index in range(200):
        now += 0.02
        for n in range(4):
            if index < 50 * (n + 1):
                emitter.token(PEER, key(n), index, 1000 * n + index, None)
            if index == 50 * (n + 1) - 1:
                emitter.end(PEER, ending(n, index + 1))
        for _, emission in emitter.flush(1, now):
            if rng.random() < 0.6:
                ack = sink.take(emission)
                if rng.random() < 0.6:
                    emitter.acknowledge(PEER, ack, now)
    for _ in range(60):
        now += RESEND_AFTER_S
        for _, emission in emitter.flush(1, now):
            if rng.random() < 0.6:
                emitter.acknowledge(PEER, sink.take(emission), now)
    assert emitter.num_unacknowledged == 0
    assert emitter.num_resent > 0
    for n in range(4):
        assert sink.tokens[key(n)] == {i: 1000 * n + i for i in range(50 * (n + 1))}
    assert sink.ended == {key(n) for n in range(4)}


WITH_LOGPROBS = TokenLogprobs(logprob=-0.1, top=tuple((i, -float(i)) for i in range(20)))


@pytest.mark.parametrize(("num_tokens", "logprobs"), [(600, WITH_LOGPROBS), (12_000, None)])
def test_long_backlogs_are_cut_into_messages_within_the_frame_limit(
    num_tokens: int, logprobs: TokenLogprobs | None
) -> None:
    emitter, sink = Emitter("n", 1), Sink()
    for index in range(num_tokens):
        emitter.token(PEER, key(1), index, index, logprobs)
    emitter.end(PEER, ending(1, num_tokens))
    messages = [emission for _, emission in emitter.flush(1, 0.0)]
    assert len(messages) > 1
    assert all(len(encode(m)[1]) <= MAX_CONTROL_BYTES for m in messages)
    for message in messages:
        ack = sink.take(message)
    emitter.acknowledge(PEER, ack, 0.0)
    assert len(sink.tokens[key(1)]) == num_tokens
    assert emitter.num_unacknowledged == 0
    assert MAX_MESSAGE_COST < MAX_CONTROL_BYTES


def test_a_lost_message_is_resent_while_the_stream_goes_on() -> None:
    emitter, sink, now = Emitter("n", 1), Sink(), 0.0
    for index in range(100):
        now += 0.05
        emitter.token(PEER, key(1), index, index, None)
        for _, emission in emitter.flush(1, now):
            if index != 5:
                emitter.acknowledge(PEER, sink.take(emission), now)
    assert set(range(90)) <= set(sink.tokens[key(1)])
    assert emitter.num_resent >= 1


def test_the_report_of_prefill_comes_again_with_its_token_until_that_is_taken() -> None:
    emitter, sink = Emitter("n", 1), Sink()
    report = PrefillReport(
        node_id="n", started_after_s=0.1, first_token_after_s=0.2, num_cached_tokens=32
    )
    emitter.prefilled(PEER, key(1), 0, report)
    emitter.token(PEER, key(1), 0, 7, None)
    ((_, lost),) = emitter.flush(1, now=0.0)
    ((_, again),) = emitter.flush(1, now=RESEND_AFTER_S * 1.1)
    assert lost.prefills == again.prefills == ((*key(1), report),)
    emitter.acknowledge(PEER, sink.take(again), now=1.0)
    emitter.token(PEER, key(1), 1, 8, None)
    for now in (2.0, 20.0):
        ((_, later),) = emitter.flush(1, now)
        assert later.deltas[0].start == 1 and later.prefills == ()


def test_an_ending_is_not_lost_to_an_acknowledgement_that_crossed_it() -> None:
    emitter = Emitter("n", 1)
    emitter.token(PEER, key(1), 0, 5, None)
    emitter.flush(1, 0.0)
    emitter.end(PEER, ending(1, 1))
    taken = TokensTaken(request_id=key(1)[0], attempt=1, next_index=1)
    emitter.acknowledge(PEER, EmissionAck(taken=(taken,), ended=(key(1),)), 0.1)
    assert [e.end_index for _, m in emitter.flush(1, 0.2) for e in m.endings] == [1]


def test_a_finished_stream_goes_once_its_tokens_are_taken() -> None:
    emitter = Emitter("n", 1)
    emitter.token(PEER, key(1), 0, 5, None)
    emitter.flush(1, 0.0)
    emitter.finish(PEER, key(1))
    assert emitter.num_unacknowledged == 1
    taken = TokensTaken(request_id=key(1)[0], attempt=1, next_index=1)
    emitter.acknowledge(PEER, EmissionAck(taken=(taken,), ended=()), 0.1)
    assert emitter.num_unacknowledged == 0
    assert emitter.flush(1, 99.0) == []


def test_closed_attempts_and_dead_gateways_are_forgotten() -> None:
    emitter = Emitter("n", 1)
    emitter.token(PEER, key(1), 0, 5, None)
    emitter.token(PEER, key(2), 0, 5, None)
    emitter.close(PEER, key(1))
    assert [d.request_id for d in emitter.flush(1, 0.0)[0][1].deltas] == [key(2)[0]]
    emitter.drop_peer(PEER)
    assert emitter.flush(1, 10.0) == []
    assert emitter.num_unacknowledged == 0
