"""When a silent writer is ended, what operators are told, and which process of a name is newest."""

from typing import Any

import msgspec
import pytest

from kv_transfer.actions import (
    ArrivalFailed,
    FenceWriter,
    GrantClosed,
    Notice,
    ReplyToWriter,
    WriterGone,
)
from kv_transfer.fencing import FENCE_AFTER_S, Incarnations
from kv_transfer.listening import ListenedTime
from tandem.frames import Blob
from tandem.messages.common import ModelIdentity
from tandem.messages.handoff import Drained, Grant, Progress, Reserve, WriterHello

OLD, NEW, OTHER = b"node/p0/1", b"node/p0/2", b"node/p1/9"
MODEL = ModelIdentity(
    served_name="m",
    weights_fingerprint="w",
    tokenizer_fingerprint="t",
    dtype="float32",
    max_model_len=64,
    vocab_size=10,
)


def reserve(request: bytes, num_tokens: int = 10) -> Reserve:
    return Reserve(
        request_id=request * 16,
        attempt=1,
        num_tokens=num_tokens,
        max_total_tokens=num_tokens,
        sequence=1,
        deadline_s=None,
        page_hashes=Blob(),
        gateway=b"g",
        owner_incarnation=5,
    )


def hello(owner: Any, epoch: int) -> WriterHello:
    return WriterHello(
        node_id="p0",
        incarnation=1,
        epoch=epoch,
        layout=owner.layout,
        model=MODEL,
        host_id="h",
        transports=("shared_memory",),
    )


def of_type(actions: list, kind: type) -> list:
    return [action for action in actions if isinstance(action, kind)]


def ticked(owner: Any, begin: float, seconds: float) -> list:
    return [a for i in range(int(seconds * 4)) for a in owner.tick(begin + i / 4)]


def withdraw_one(owner: Any) -> int:
    """A grant of three pages to OLD that the decode node ended; its mapping is still open."""
    (grant,) = [a.message for a in owner.hear(reserve(b"r"), writer=OLD)[1:]]
    owner.cancel((b"r" * 16, 1))
    owner.bulk(GrantClosed(grant.grant_id, False))
    grant_id: int = grant.grant_id
    return grant_id


def test_nobody_is_fenced_while_nobody_wants_pages(make_owner: Any) -> None:
    owner = make_owner(num_pages=16)
    withdraw_one(owner)
    assert of_type(ticked(owner, 0.0, 100.0), FenceWriter) == []
    assert owner.ledger.counts().draining == 3


def test_a_silent_writer_is_fenced_when_a_reserve_waits(make_owner: Any) -> None:
    owner = make_owner(num_pages=16)
    withdraw_one(owner)
    early = ticked(owner, 0.0, 5.0)
    for at in range(5, 40, 5):  # the waiting writer lives
        owner.hear(reserve(b"s", 60), float(at), writer=OTHER)
        early += ticked(owner, float(at), 5.0)
        if at + 5 <= FENCE_AFTER_S:
            assert of_type(early, FenceWriter) == []
    fences = of_type(early, FenceWriter)
    assert set(fences) == {FenceWriter(OLD)}
    assert 2 <= len(fences) <= 4  # repeated, but not at every tick
    notices = [a.text for a in of_type(early, Notice) if "its process is ended" in a.text]
    assert len(notices) == 1
    assert owner.ledger.counts().draining == 3  # asking for a fence proves nothing


def test_a_silent_writer_is_fenced_when_a_preempted_request_wants_to_come_back(
    make_owner: Any,
) -> None:
    owner = make_owner(num_pages=16)
    withdraw_one(owner)
    owner.pool.growth.displace((b"t" * 16, 1), 1, 5)
    assert set(of_type(ticked(owner, 0.0, 40.0), FenceWriter)) == {FenceWriter(OLD)}


def test_a_writer_that_says_something_is_not_fenced(make_owner: Any) -> None:
    owner = make_owner(num_pages=16)
    withdraw_one(owner)
    actions = []
    for at in range(0, 60, 4):
        owner.hear(reserve(b"s", 60), float(at), writer=OTHER)
        owner.hear(
            Progress(request_id=b"q" * 16, attempt=1, grant_id=1, num_pages_written=0),
            float(at),
            writer=OLD,
        )
        actions += ticked(owner, float(at), 4.0)
    assert of_type(actions, FenceWriter) == []


@pytest.mark.parametrize(
    ("has_work", "step_age_s", "is_fenced"),
    [(True, 12.0, False), (True, 40.0, True), (False, 40.0, False)],
)
def test_a_greeting_is_a_sign_of_life_unless_it_tells_of_a_wedged_loop(
    make_owner: Any, has_work: bool, step_age_s: float, is_fenced: bool
) -> None:
    """Steps of some seconds are slow, not stuck: what they predict counts."""
    owner = make_owner(num_pages=16)
    withdraw_one(owner)
    greeting = msgspec.structs.replace(
        hello(owner, 1), has_work=has_work, step_age_s=step_age_s, predicted_step_s=6.0
    )
    actions = []
    for at in range(0, 60, 3):
        owner.hear(reserve(b"s", 60), float(at), writer=OTHER)
        owner.hear(greeting, float(at), writer=OLD)
        actions += ticked(owner, float(at), 3.0)
    assert (of_type(actions, FenceWriter) != []) is is_fenced


def test_a_writer_over_its_cap_is_fenced_though_nobody_waits(make_owner: Any) -> None:
    owner = make_owner(num_pages=16, max_draining_pages=2)
    withdraw_one(owner)
    actions = ticked(owner, 0.0, FENCE_AFTER_S + 1.0)
    assert of_type(actions, FenceWriter) == [FenceWriter(OLD)]
    texts = [a.text for a in of_type(actions, Notice)]
    assert len([t for t in texts if "3 pages undrained, more than 2" in t]) == 1


def test_our_own_long_step_is_nobodys_silence(make_owner: Any) -> None:
    owner = make_owner(num_pages=16, max_draining_pages=2)
    withdraw_one(owner)
    ticked(owner, 0.0, 2.0)
    assert of_type(owner.tick(60.0), FenceWriter) == []


def test_a_drained_writer_is_left_alone_though_our_receiver_is_slow(make_owner: Any) -> None:
    owner = make_owner(num_pages=16, max_draining_pages=2)
    owner.hear(reserve(b"r"), writer=OLD)
    owner.cancel((b"r" * 16, 1))
    owner.hear(Drained(request_id=b"r" * 16, attempt=1), writer=OLD)
    assert of_type(ticked(owner, 0.0, 60.0), FenceWriter) == []


def test_a_newer_process_of_the_name_proves_no_page_free(make_owner: Any) -> None:
    owner = make_owner(num_pages=16)
    owner.hear(hello(owner, 3), writer=OLD)
    (grant,) = [
        a.message
        for a in owner.hear(reserve(b"r"), writer=OLD)
        if isinstance(a, ReplyToWriter) and isinstance(a.message, Grant)
    ]
    actions = owner.hear(hello(owner, 4), 1.0, writer=NEW)
    (failed,) = of_type(actions, ArrivalFailed)
    assert failed.code == "node_failed"
    owner.bulk(GrantClosed(grant.grant_id, False))
    assert owner.ledger.counts().draining == 3
    owner.hear(Drained(request_id=b"r" * 16, attempt=1), 2.0, writer=OLD)  # true at any age
    assert owner.ledger.counts().free == 16


def test_what_an_older_process_asks_is_counted_and_dropped(make_owner: Any) -> None:
    owner = make_owner(num_pages=16)
    owner.hear(hello(owner, 4), writer=NEW)
    owner.hear(hello(owner, 3), writer=OLD)  # late: epochs decide, not the order of arrival
    assert owner.hear(reserve(b"r"), writer=OLD) == []
    assert owner.machine.num_past == 1
    assert of_type(owner.hear(reserve(b"r"), writer=NEW), ReplyToWriter)
    assert owner.ledger.counts().granted == 3


def test_incarnations_are_ordered_by_epoch_per_name() -> None:
    incarnations = Incarnations()
    assert incarnations.greeted(OLD, 3) is None
    assert incarnations.greeted(OLD, 5) is None  # admitted anew
    assert incarnations.greeted(OTHER, 4) is None
    assert incarnations.greeted(NEW, 4) is None  # an older one, heard late
    assert incarnations.is_past(NEW)
    assert incarnations.greeted(NEW, 6) == OLD
    assert incarnations.is_past(OLD)
    assert not incarnations.is_past(NEW)
    assert not incarnations.is_past(OTHER)
    assert not incarnations.is_past(b"node/p2/1")


def test_listened_time_skips_what_was_not_listened_to() -> None:
    time = ListenedTime()
    for now in (10.0, 10.5, 70.0, 69.0, 70.5):
        time.tick(now)
    assert time.now_s == 0.5 + 1.0 + 0.0 + 1.0


def test_a_reserve_of_a_dead_process_that_was_still_on_the_wire_begins_nothing(
    make_owner: Any,
) -> None:
    owner = make_owner(num_pages=16)
    owner.bulk(WriterGone(OLD))
    assert owner.hear(reserve(b"r"), 0.1, writer=OLD) == []
    assert (owner.ledger.counts().free, owner.machine.live()) == (16, {})
    assert of_type(owner.hear(reserve(b"r"), 0.2, writer=NEW), ReplyToWriter)
