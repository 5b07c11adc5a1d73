"""Incremental text: whole characters, the same text however it comes, cut at stop strings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from gateway.text import MAX_HELD_TOKENS, Detokenizer, StopScanner, TextStream


def decode_bytes(ids) -> str:
    """Each id is one byte: the hardest case of byte-level BPE."""
    return bytes(ids).decode("utf-8", errors="replace")


@pytest.fixture(scope="module")
def byte_fallback():
    """Decodes as Llama 2 does: unknown characters as byte tokens, spaces in the tokens."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    for word in ("▁Hallo", "▁wer", "ld", "▁", "x"):
        vocab[word] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer.decode


@given(st.text(max_size=40))
def test_characters_of_several_bytes_come_whole(text) -> None:
    detokenizer = Detokenizer(decode_bytes)
    pieces = [detokenizer.push(byte) for byte in text.encode()]
    assert "".join(pieces) + detokenizer.flush() == text
    assert "".join(pieces) == text.rstrip("\ufffd")
    if "\ufffd" not in text:
        assert all(len(piece) <= 1 for piece in pieces)


@given(st.lists(st.integers(0, 255), max_size=MAX_HELD_TOKENS - 1))
def test_invalid_bytes_add_up_to_what_decoding_at_once_gives(ids) -> None:
    detokenizer = Detokenizer(decode_bytes)
    text = "".join(detokenizer.push(byte) for byte in ids) + detokenizer.flush()
    assert text == decode_bytes(ids)


def test_endless_invalid_bytes_are_not_held_for_ever() -> None:
    detokenizer = Detokenizer(decode_bytes)
    text = "".join(detokenizer.push(0x80) for _ in range(1000))
    assert len(text) > 900


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["Grüße", "日本", "🙂", "a", " ", "\n"]), max_size=12).map("".join),
    st.lists(st.integers(256, 260), max_size=8),
)
def test_byte_fallback_tokens_come_whole(byte_fallback, text, words) -> None:
    ids = [*words, *text.encode(), *words]
    detokenizer = Detokenizer(byte_fallback)
    pieces = [detokenizer.push(token_id) for token_id in ids]
    assert "".join(pieces) + detokenizer.flush() == byte_fallback(ids)
    assert "\ufffd" not in "".join(pieces)


def specification(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """Cut before the stop string that is complete first; of several, the longest."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            longest = max(hits, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=300)
@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3, unique=True),
)
def test_stop_strings_cut_the_same_however_the_text_comes(pieces, stops) -> None:
    scanner = StopScanner(stops)
    shown, stopped = "", None
    for piece in pieces:
        safe, stopped = scanner.push(piece)
        shown += safe
        if stopped is not None:
            break
    if stopped is None:
        shown += scanner.flush()
    assert (shown, stopped) == specification("".join(pieces), tuple(stops))


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    scanner = StopScanner(["END", "\n\n"])
    assert scanner.push("one E") == ("one ", None)
    assert scanner.push("very\n") == ("Every", None)
    assert scanner.push("x\nEN") == ("\nx\n", None)
    assert scanner.push("D!") == ("", "END")


def test_end_tokens_have_no_text() -> None:
    stream = TextStream(decode_bytes, (), frozenset({65}))
    assert [stream.push(token_id) for token_id in (66, 65)] == [("B", None), ("", None)]


def test_a_held_character_can_complete_a_stop_string_at_the_end() -> None:
    stream = TextStream(decode_bytes, ("\ufffd",), frozenset())
    assert stream.push(0xE2) == ("", None)
    assert stream.flush() == ("", "\ufffd")


def stream_of(ids, stops) -> tuple[TextStream, str, str | None]:
    """A stream after these tokens, with what it has shown; the stop string, if it ended."""
    stream, shown = TextStream(decode_bytes, stops, frozenset()), ""
    for token_id in ids:
        text, stop = stream.push(token_id)
        shown += text
        if stop is not None:
            return stream, shown, stop
    return stream, shown, None


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["Grüße", "日本", "🙂", "a", "ab", "\n"]), max_size=12).map("".join),
    st.integers(0, 100),
    st.integers(0, 200),
    st.integers(0, 60),
    st.sampled_from([(), ("ab",), ("aba", "本a", "\n\n")]),
)
def test_a_resumed_text_is_the_undisturbed_one(text, num_before, at, lag, stops) -> None:
    """Wherever it was cut, and however much of its text the client has of that."""
    ids = [*b"x" * num_before, *text.encode()]
    at = min(at, len(ids))
    _, first, stopped = stream_of(ids[:at], stops)
    has = first[: max(0, len(first) - lag)]
    resumed = TextStream(decode_bytes, stops, frozenset())
    rest, stop = resumed.resume(ids[:at], len(has))
    assert stop == stopped
    for token_id in () if stop is not None else ids[at:]:
        piece, stop = resumed.push(token_id)
        rest += piece
        if stop is not None:
            break
    if stop is None:
        piece, stop = resumed.flush()
        rest += piece
    assert (has + rest, stop) == specification(bytes(ids).decode(), stops)


def test_a_long_text_is_resumed_in_blocks() -> None:
    num_decoded = 0

    def decode(ids) -> str:
        nonlocal num_decoded
        num_decoded += len(ids)
        return decode_bytes(ids)

    text = "Grüße 🙂 " * 1000
    ids = list(text.encode())
    stream = TextStream(decode, (), frozenset())
    rest, _ = stream.resume(ids[:-1], 0)
    assert rest + stream.push(ids[-1])[0] == text
    assert num_decoded < 6 * len(ids), "each token is decoded a few times"


def test_the_clients_characters_beyond_what_is_known_are_skipped() -> None:
    stream = TextStream(decode_bytes, ("bc",), frozenset())
    assert stream.resume(b"ab", 2) == ("", None)
    assert stream.push(ord("d")) == ("d", None)
    assert stream.push(ord("b")) == ("", None)
    assert stream.flush() == ("b", None)


def test_what_the_client_got_at_an_end_is_skipped_at_the_end() -> None:
    stream = TextStream(decode_bytes, ("bc",), frozenset())
    assert stream.resume(b"ab", 2) == ("", None)
    assert stream.flush() == ("", None)


def test_end_tokens_have_no_text_when_they_are_resumed_either() -> None:
    stream = TextStream(decode_bytes, (), frozenset({65}))
    assert stream.resume(b"BA", 0) == ("B", None)
