"""What single tokens stand for, in bytes."""

import pytest

from gateway.token_pieces import TokenPieces, spelled_bytes


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("<0xE2>", b"\xe2"),
        ("<0xZZ>", b"<0xZZ>"),
        ("âĤ¬", "€".encode()),
        ("Ġâ", b" \xe2"),
        ("Ċ", b"\n"),
        ("▁€", "▁€".encode()),
        ("", b""),
    ],
)
def test_bytes_of_a_spelling(spelling: str, expected: bytes) -> None:
    assert spelled_bytes(spelling) == expected


def test_the_tokens_of_a_text_add_up_to_its_bytes(tokenizer) -> None:
    pieces = TokenPieces(
        lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
        tokenizer.convert_ids_to_tokens,
        tokenizer.encode("a", add_special_tokens=False)[0],
    )
    text = "def f(x):\n    return '€ 10 – 漢字 🙂'  # naïve\u00ad\n"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(pieces.bytes_of(each) for each in ids).decode() == text
    assert any("\ufffd" in pieces.text_of(each) for each in ids)
    (end,) = tokenizer.encode("<|endoftext|>")[-1:]
    assert pieces.text_of(end) == "<|endoftext|>"
    everything = [pieces.bytes_of(each) for each in range(len(tokenizer))]
    assert len(set(everything)) > 0.99 * len(everything)
