"""Requests that another gateway had accepted go on after what their clients have."""

import pytest

from tandem.codec import Decoder, encode
from tandem.frames import TokenIds
from tandem.messages.placement import RequestEnded
from tandem.messages.serving import Decode

# Texts of the fakes: one letter per id.
TEN_TO_THIRTEEN = "klmn"


def resume(world, ids, num_chars: int, **changes) -> None:
    world.submit(delivered=TokenIds(ids), num_chars=num_chars, **changes)


def test_a_stream_goes_on_after_what_was_delivered(world, expected) -> None:
    text = world.text(99)
    resume(world, expected[:3], 3)
    place = world.question()
    assert (place.attempt, place.num_output_tokens, place.num_deaths) == (1, 3, 0)
    world.coordinate()
    specs = [m.spec for _, m in world.to_nodes if isinstance(m, Decode)]
    assert [s.output_ids.array.tolist() for s in specs] == [expected[:3]]
    world.run(12)
    assert world.ids(start=3) == expected[3:]
    assert world.text() == text[3:]
    done = world.done()
    assert (done.reason, done.usage.num_output_tokens) == ("length", 6)
    assert world.ends[-1].num_output_tokens == 3


def test_repeated_tokens_must_be_those_that_were_delivered(world) -> None:
    resume(world, [10, 11], 2)
    world.coordinate()
    world.emit(world.nodes["d0"], world.tokens(1, 0, [10, 12]))
    assert world.question().attempt == 2


@pytest.mark.parametrize("num_chars", [0, 1, 2, 3])
def test_text_that_was_held_back_comes_first(world, num_chars) -> None:
    resume(world, [10, 11, 12], num_chars)
    assert world.text() == TEN_TO_THIRTEEN[num_chars:3]
    assert all(output.index == 3 for output in world.outputs())
    world.coordinate()
    world.emit(world.nodes["d0"], world.tokens(1, 3, [13]))
    assert world.text() == TEN_TO_THIRTEEN[num_chars:]


def test_text_that_is_there_already_does_not_come_again(world) -> None:
    """The first gateway had shown at the end what is held back here for a stop string."""
    resume(world, [10, 11], 2, params={"stop": ("lz",)})
    world.coordinate()
    world.emit(world.nodes["d0"], world.tokens(1, 2, [12, 13]))
    assert world.text() == "mn"


@pytest.mark.parametrize("num_chars", [0, 1])
def test_a_stop_string_may_span_the_boundary(world, num_chars) -> None:
    resume(world, [10, 11], num_chars, params={"stop": ("lm",)})
    world.coordinate()
    world.emit(world.nodes["d0"], world.tokens(1, 2, [12, 13]))
    assert world.text() == "k"[num_chars:]
    assert world.ids(start=2) == [12]
    done = world.done()
    assert (done.reason, done.stop_string, done.usage.num_output_tokens) == ("stop", "lm", 3)


@pytest.mark.parametrize(
    ("ids", "params", "reason", "stop_string"),
    [
        ([10, 11], {"max_tokens": 2}, "length", None),
        ([10, 11, 12], {"max_tokens": 2}, "length", None),
        ([10, 3], {}, "stop", None),
        ([10, 11], {"stop_token_ids": (11,)}, "stop", None),
        ([10, 11, 12], {"stop": ("lm",)}, "stop", "lm"),
    ],
)
def test_what_was_complete_ends_at_once(world, ids, params, reason, stop_string) -> None:
    resume(world, ids, 0, params=params)
    assert world.to_nodes == []
    done = world.done()
    assert (done.reason, done.stop_string) == (reason, stop_string)
    assert len(world.ledger) == 0
    assert world.ledger.num_prompt_tokens == 0
    assert [type(m).__name__ for m in world.to_coordinator] == ["RequestEnded"]


def test_the_end_of_what_was_complete_can_be_read_by_the_coordinator(world) -> None:
    """It had no attempt, and attempts count from one on the wire."""
    resume(world, [10, 17, 24], 3, params={"max_tokens": 3})
    (report,) = world.to_coordinator
    assert Decoder(RequestEnded).decode(encode(report)) == report


def test_the_end_shows_what_was_held_back(world) -> None:
    resume(world, [10, 11], 1, params={"max_tokens": 2, "stop": ("lm",)})
    assert world.text() == "l"
    assert world.done().reason == "length"


def test_tpot_is_of_the_tokens_that_came_here(world) -> None:
    resume(world, [10] * 4, 4, params={"max_tokens": 6})
    world.coordinate()
    world.emit(world.nodes["d0"], world.tokens(1, 4, [10]))
    world.tick(0.15)
    world.emit(world.nodes["d0"], world.tokens(1, 5, [10]), world.ending(1, 6, "length"))
    world.coordinate()
    assert world.ends[-1].tpot_ms == pytest.approx(150)


def test_a_resumed_request_fails_over_like_any(world, expected) -> None:
    resume(world, expected[:2], 2)
    world.run(2)
    world.lose("d0")
    world.add_node("d0")
    world.run(20)
    assert world.ids(start=2) == expected[2:]
