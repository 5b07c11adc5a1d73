"""The tokenizer's threads: prompts in every form, and text back."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from gateway.admission import Rejected
from gateway.text import Detokenizer
from gateway.tokenize import SHORT_CHARS, Tokenization, _encode, _encode_plainly
from tandem.frames import Blob, TokenIds
from tandem.messages.client import ChatMessage, Submit

TEXT = "def add(a, b):\n    '''Grüße, 日本 🙂'''\n    return a + b\n"


@pytest.fixture(scope="module")
def decoding(tokenizer):
    """Without threads: no prompt is given to it."""
    return Tokenization(tokenizer, num_threads=1)


@pytest.fixture
def tokenization(tokenizer):
    made = Tokenization(tokenizer, num_threads=2)
    yield made
    made.close()


def ids_of(tokenization, **fields) -> list[int]:
    submit = Submit(label="x", **fields)
    return asyncio.run(tokenization.prompt_ids(submit)).array.tolist()


def test_text_becomes_the_tokenizers_ids(tokenization, tokenizer) -> None:
    assert ids_of(tokenization, prompt=Blob(TEXT.encode())) == tokenizer(TEXT)["input_ids"]


def test_ids_pass_through(tokenization) -> None:
    assert ids_of(tokenization, prompt_ids=TokenIds([5, 6])) == [5, 6]


def test_a_conversation_goes_through_the_chat_template(tokenization, tokenizer) -> None:
    turns = [{"role": "user", "content": "What is a list?"}]
    ids = ids_of(tokenization, chat=(ChatMessage(**turns[0]),))
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(ids) == text
    assert "What is a list?" in text


def test_a_model_without_chat_template_says_so(tokenization, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(Rejected) as caught:
        ids_of(tokenization, chat=(ChatMessage(role="user", content="hi"),))
    assert "no chat template" in str(caught.value)


def test_a_template_that_refuses_is_the_clients_error(tokenization, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no such role') }}")
    with pytest.raises(Rejected) as caught:
        ids_of(tokenization, chat=(ChatMessage(role="system", content="hi"),))
    assert caught.value.code == "invalid_request"
    assert "no such role" in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tokenization) -> None:
    with pytest.raises(Rejected) as caught:
        ids_of(tokenization, prompt=Blob(b"abc\xff"))
    assert "byte 3" in str(caught.value)


def test_tokens_one_by_one_give_the_text_of_all(tokenization, tokenizer) -> None:
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(tokenization.decode)
    pieces = [detokenizer.push(token_id) for token_id in ids]
    assert "".join(pieces) + detokenizer.flush() == TEXT
    assert not any("\ufffd" in piece for piece in pieces)


def test_special_tokens_have_no_text(tokenization, tokenizer) -> None:
    ids = tokenizer("abc", add_special_tokens=False)["input_ids"]
    assert tokenization.decode([*ids, tokenizer.eos_token_id]) == "abc"


def test_many_prompts_at_once_do_not_disturb_each_other(tokenization, tokenizer) -> None:
    texts = [TEXT * (1 + i % 7) + str(i) for i in range(60)]
    assert min(map(len, texts)) < SHORT_CHARS < max(map(len, texts)), "by both ways"

    async def run() -> list[TokenIds]:
        submits = [Submit(label="x", prompt=Blob(text.encode())) for text in texts]
        return await asyncio.gather(*(tokenization.prompt_ids(s) for s in submits))

    ids = asyncio.run(run())
    assert [each.array.tolist() for each in ids] == [tokenizer(t)["input_ids"] for t in texts]


def test_every_token_said_to_be_whole_has_its_text_anywhere(decoding, tokenizer) -> None:
    whole, decode = decoding.whole, decoding.decode
    assert whole is not None
    texts = {token_id: whole(token_id) for token_id in range(len(tokenizer))}
    found = {token_id: text for token_id, text in texts.items() if text is not None}
    assert len(found) > 0.9 * len(texts)
    neighbours = [*tokenizer.encode("\U0001f642", add_special_tokens=False), *list(found)[:9]]
    for token_id, text in found.items():
        for before in neighbours:
            assert decode([before, token_id]) == decode([before]) + text


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_short_way_gives_the_same_pieces(decoding, tokenizer, data) -> None:
    some = st.sampled_from(["\U0001f642", "日本", "é", " a", "def", "\n"])
    parts = st.one_of(
        some.map(lambda text: tokenizer.encode(text, add_special_tokens=False)),
        st.integers(0, len(tokenizer) - 1).map(lambda token_id: [token_id]),
        st.lists(st.integers(0, 260), max_size=3),  # parts of characters among them
    )
    ids = [each for part in data.draw(st.lists(parts, max_size=20)) for each in part]
    plain = Detokenizer(decoding.decode)
    short = Detokenizer(decoding.decode, decoding.whole)
    assert [short.push(each) for each in ids] == [plain.push(each) for each in ids]
    assert short.flush() == plain.flush()


def test_where_text_depends_on_neighbours_there_is_no_short_way(tokenizer, monkeypatch) -> None:
    backend = tokenizer.backend_tokenizer
    monkeypatch.setattr(backend, "decoder", decoders.Metaspace())
    made = Tokenization(tokenizer, num_threads=1)
    assert made.whole is None
    made.close()


@pytest.mark.parametrize("is_plain", [False, True])
def test_the_library_below_encodes_as_the_tokenizer_does(decoding, is_plain) -> None:
    own = decoding._plain if is_plain else decoding._tokenizer
    for text in (TEXT, "", "<|endoftext|>x<|endoftext|>", " a", "\x00\ufffd\u200b é"):
        for special in (False, True):
            found = _encode(own, text, add_special_tokens=special)
            assert found == _encode_plainly(own, text, add_special_tokens=special)
