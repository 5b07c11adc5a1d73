"""One choice's words as its caller wants to see them."""

from collections.abc import Sequence

from gateway.openai.reading import Ending, Piece, Reader
from tandem.messages.client import Done, Output
from tandem.messages.common import Timeline, Usage
from tandem.sampling import SamplingParams

WORDS = {0: b"<eos>", 1: b"a", 2: b"\xe2\x82", 3: b"\xac", 4: b"<x>"}


def spell(ids: Sequence[int]) -> str:
    return b"".join(WORDS[each] for each in ids).decode(errors="replace")


def reader(*, includes_stop: bool = False, shows_all: bool = False, **params) -> Reader:
    spelled_out = spell if shows_all else None
    return Reader(
        SamplingParams(**params),
        frozenset({0}),
        includes_stop=includes_stop,
        spelled_out=spelled_out,
    )


def output(*ids: int, text: str = "") -> Output:
    return Output(request_id=bytes(16), index=0, token_ids=ids, text=text)


def done(reason: str = "stop", stop: str | None = None) -> Done:
    return Done(
        request_id=bytes(16),
        reason=reason,
        usage=Usage(num_prompt_tokens=1, num_output_tokens=1),
        timeline=Timeline(received_unix_s=0.0),
        sla_class="",
        sla_attained=True,
        stop_string=stop,
    )


def test_the_ledgers_text_is_passed_on() -> None:
    own = reader()
    assert own.output(output(1, 2, text="a")) == Piece("a", (1, 2))
    assert own.done(done("length")) == Ending("length")
    assert own.num_tokens == 2


def test_what_ended_an_answer_is_told() -> None:
    own = reader(stop_token_ids=(4,))
    own.output(output(1, 4, text="a"))
    assert own.done(done()) == Ending("stop", "", 4)
    assert reader().done(done(stop="xy")) == Ending("stop", "", "xy")
    assert reader(includes_stop=True).done(done(stop="xy")) == Ending("stop", "xy", "xy")
    ended = reader()
    ended.output(output(0))
    assert ended.done(done()) == Ending("stop")


def test_special_tokens_are_spelled_out_but_for_those_that_end_it() -> None:
    own = reader(shows_all=True, stop_token_ids=(1,))
    assert own.output(output(4)).text == "<x>"
    assert own.output(output(2)).text == ""  # a part of a character waits for its rest
    assert own.output(output(3)).text == "€"
    assert own.output(output(1)).text == ""
    assert own.done(done()) == Ending("stop", "", 1)


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    own = reader(shows_all=True)
    own.output(output(2))
    assert own.done(done("length")) == Ending("length", "\ufffd")


def test_stop_strings_that_name_special_tokens_are_found_here() -> None:
    own = reader(shows_all=True, stop=("<x>",))
    piece = own.output(output(1, 4, 1, 1))
    assert (piece, own.stop_string, own.num_tokens) == (Piece("a", (1, 4)), "<x>", 2)
    assert own.end_at_stop() == Ending("stop", "", "<x>")
    held = reader(shows_all=True, stop=("<xy",))
    assert held.output(output(4)).text == "<x>"
    late = reader(shows_all=True, stop=("a<",))
    assert late.output(output(1)).text == ""
    assert late.done(done("length")) == Ending("length", "a")
