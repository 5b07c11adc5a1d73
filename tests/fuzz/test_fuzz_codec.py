"""The codec under damage: 20,000 examples of every link; the fuzz target itself."""

import functools
import random
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from tandem.codec import MAGIC, MAX_DEPTH, Decoder, ProtocolError, encode
from tandem.messages.common import Wire
from tests.fuzz.fuzz_codec import Corpus, answer, one_input
from tests.fuzz.wire_values import LINKS, draw_message, members_of, mutate, valid_frames

links = st.sampled_from(sorted(LINKS))


@functools.cache
def valid_messages(link: str) -> list[list[bytes]]:
    """Frames of 200 messages of a link."""
    rng = random.Random(link)
    return [valid_frames(rng, LINKS[link]) for _ in range(200)]


@settings(max_examples=16_000)
@given(links, st.integers(0, 2**32))
def test_damaged_messages_are_messages_or_protocol_errors(link: str, seed: int) -> None:
    rng, valid = random.Random(seed), valid_messages(link)
    assert answer(link, mutate(rng.choice(valid), rng, rng.choice(valid)))


@settings(max_examples=4_000)
@given(links, st.lists(st.binary(max_size=60), max_size=4))
def test_any_bytes_are_messages_or_protocol_errors(link: str, frames: list[bytes]) -> None:
    assert answer(link, [MAGIC, *frames])


@pytest.mark.parametrize("link", sorted(LINKS))
def test_every_message_reads_as_it_was_sent_and_by_its_own_link_only(link: str) -> None:
    rng = random.Random(link)
    own = set(members_of(LINKS[link]))
    others = {kind for union in LINKS.values() for kind in members_of(union)} - own
    for kind in sorted(own, key=lambda k: k.__name__):
        for _ in range(10):
            message = draw_message(kind, rng)
            assert repr(Decoder[Any](LINKS[link]).decode(encode(message))) == repr(message)
    for kind in others:
        with pytest.raises(ProtocolError, match="not a message of this link"):
            Decoder[Any](LINKS[link]).decode(encode(draw_message(kind, rng)))


def test_decoding_leaves_nothing_behind() -> None:
    corpus = Corpus(seed=1)
    for _ in range(1000):
        corpus.step()
    tracemalloc.start()
    try:
        rng, union = random.Random(2), LINKS["client to gateway"]
        frames = [
            mutate(valid_frames(rng, union), rng, valid_frames(rng, union)) for _ in range(50)
        ]
        for frame in frames:
            answer("client to gateway", frame)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(100):
            for frame in frames:
                answer("client to gateway", frame)
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()


def depth_of(info: Any) -> int:
    """How deep maps and arrays of this type may nest."""
    match info:
        case inspect.StructType():
            return 1 + max((depth_of(field.type) for field in info.fields), default=0)
        case inspect.UnionType():
            return max(depth_of(member) for member in info.types)
        case inspect.DictType():
            return 1 + max(depth_of(info.key_type), depth_of(info.value_type))
        case inspect.VarTupleType():
            return 1 + depth_of(info.item_type)
        case inspect.TupleType():
            return 1 + max(depth_of(item) for item in info.item_types)
        case inspect.AnyType() | inspect.ListType() | inspect.RawType() | inspect.ExtType():
            return MAX_DEPTH + 1
    return 0


def test_no_message_has_a_free_form_field() -> None:
    """A decoder reads no deeper than the types say: that is the depth limit."""
    depths = {
        kind.__name__: depth_of(inspect.type_info(kind))
        for union in LINKS.values()
        for kind in members_of(union)
    }
    assert max(depths.values()) <= MAX_DEPTH and max(depths.values()) >= 3


def structs_of(kind: type[Wire]) -> list[type[Wire]]:
    """All structs that derive from `kind`, itself included."""
    return [kind, *(each for below in kind.__subclasses__() for each in structs_of(below))]


def test_every_struct_of_the_wire_refuses_unknown_fields() -> None:
    """What a decoder would skip, another reader may believe."""
    structs = structs_of(Wire)
    assert {kind for union in LINKS.values() for kind in members_of(union)} <= set(structs)
    assert [s.__name__ for s in structs if not s.__struct_config__.forbid_unknown_fields] == []


def test_the_built_in_loop_finds_ever_new_answers_and_repeats_itself() -> None:
    started = time.monotonic()
    first, second = Corpus(seed=3), Corpus(seed=3)
    while time.monotonic() - started < 2.0:
        first.step()
        second.step()
    assert first.features == second.features and len(first.features) > 200
    assert {link for link, _ in first.features} == set(LINKS)


@given(st.binary(max_size=200))
def test_the_target_takes_any_bytes(data: bytes) -> None:
    assert one_input(data) is None  # type: ignore[func-returns-value]


def test_the_target_reports_what_it_must_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus(seed=0)
    monkeypatch.setattr("tandem.codec.check_limits", lambda frames: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        corpus.step()
