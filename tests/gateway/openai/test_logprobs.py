"""Log-probabilities in both forms; tokens that are parts of characters."""

from gateway.openai.logprobs import CompletionScribe, TokenNames, chat_logprobs, joined
from tandem.messages.common import TokenLogprobs

WORDS = {1: b"a", 2: b"\xe2\x82", 3: b"\xac", 4: b"<end>", 5: b"\xff", 6: "é".encode()}
NAMES = TokenNames(WORDS.__getitem__, lambda token_id: token_id == 4, as_ids=False)


def own(*top: tuple[int, float]) -> TokenLogprobs:
    return TokenLogprobs(logprob=top[0][1], top=top)


def test_parts_of_characters_keep_their_bytes_in_chats() -> None:
    told = chat_logprobs([2, 3], [own((2, -1.0), (5, -2.0)), own((3, -0.1))], NAMES)
    assert [each.token for each in told.content] == ["\ufffd", "\ufffd"]
    assert b"".join(bytes(each.bytes) for each in told.content).decode() == "€"
    assert [each.bytes for each in told.content[0].top_logprobs] == [[0xE2, 0x82], [0xFF]]


def test_parts_of_characters_have_names_of_their_own_in_completions() -> None:
    told = CompletionScribe(NAMES).take([2, 3], [own((2, -1.0), (5, -2.0)), own((3, -0.1))])
    assert told.tokens == ["bytes:\\xe2\\x82", "bytes:\\xac"]
    assert told.top_logprobs[0] == {"bytes:\\xe2\\x82": -1.0, "bytes:\\xff": -2.0}


def test_offsets_are_characters_of_the_text() -> None:
    scribe = CompletionScribe(NAMES)
    first = scribe.take([4, 1, 2], [None, own((1, -1.0)), own((2, -1.0))])
    second = scribe.take([3, 6, 1], [own((3, -1.0)), own((6, -1.0)), own((1, -1.0))])
    told = joined([first, second])
    text = "a€éa"  # what is hidden has no width, a character counts where it is complete
    assert told.text_offset == [0, 0, 1, 1, 2, 3]
    assert text[told.text_offset[4] :].startswith("é")
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == 6


def test_the_token_itself_is_among_its_alternatives() -> None:
    unlikely = TokenLogprobs(logprob=-9.0, top=((1, -0.1),))
    assert CompletionScribe(NAMES).take([6], [unlikely]).top_logprobs == [{"a": -0.1, "é": -9.0}]


def test_of_two_that_are_called_alike_the_likelier_is_listed() -> None:
    same = TokenNames(lambda token_id: b"x", lambda token_id: False, as_ids=False)
    told = CompletionScribe(same).take([1], [own((1, -1.0), (2, -2.0))])
    assert told.top_logprobs == [{"x": -1.0}]
    by_id = TokenNames(lambda token_id: b"x", lambda token_id: False, as_ids=True)
    told = CompletionScribe(by_id).take([1], [own((1, -1.0), (2, -2.0))])
    assert told.top_logprobs == [{"token_id:1": -1.0, "token_id:2": -2.0}]
    assert chat_logprobs([1], [own((1, -1.0))], by_id).content[0].token == "token_id:1"
