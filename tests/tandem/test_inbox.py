"""A client takes each token and character once, whatever it is told and in which order."""

from tandem.inbox import Inbox
from tandem.messages.client import Done, Output
from tandem.messages.common import Timeline, Usage

REQUEST_ID = bytes(16)


def piece(index: int, *ids: int, text: str = "") -> Output:
    return Output(request_id=REQUEST_ID, index=index, token_ids=ids, text=text)


def end(num_tokens: int, num_chars: int | None) -> Done:
    usage = Usage(num_prompt_tokens=1, num_output_tokens=num_tokens, num_cached_tokens=0)
    return Done(
        request_id=REQUEST_ID,
        reason="length",
        usage=usage,
        timeline=Timeline(received_unix_s=0.0),
        sla_class="standard",
        sla_attained=True,
        num_chars=num_chars,
    )


def test_a_gap_is_told_and_nothing_is_taken() -> None:
    inbox = Inbox()
    assert inbox.take(piece(1, 11, text="b")) is None
    assert inbox.ids == []
    assert inbox.take(piece(0, 10, text="a")) == (piece(0, 10, text="a"),)


def test_what_is_known_is_not_taken_again() -> None:
    inbox = Inbox()
    inbox.take(piece(0, 10, 11, text="ab"))
    assert inbox.take(piece(0, 10, 11, text="ab")) == ()
    assert inbox.take(piece(1, 11, 12, text="bc")) is None, "pieces are repeated whole"
    assert (inbox.ids, inbox.texts) == ([10, 11], ["ab"])


def test_the_end_waits_for_every_token_also_for_those_without_text() -> None:
    inbox = Inbox()
    inbox.take(piece(0, 10, text="a"))
    assert inbox.end(end(2, num_chars=1)) is None
    inbox.take(piece(1, 0))
    assert inbox.end(end(2, num_chars=1)) == ()


def test_the_end_waits_for_every_character_also_for_those_without_tokens() -> None:
    inbox = Inbox()
    inbox.take(piece(0, 10, text="a"))
    assert inbox.end(end(1, num_chars=2)) is None
    tail = piece(1, text="b")
    assert inbox.take(tail) == inbox.take(tail) == ()
    assert inbox.end(end(1, num_chars=2)) == (tail,)
    assert "".join(inbox.texts) == "ab"
