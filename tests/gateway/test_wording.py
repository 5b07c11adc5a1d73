"""Messages of bounded size, whatever they are made from."""

import pytest

from gateway import wording
from tandem.codec import Decoder, encode
from tandem.messages.client import Output
from tandem.messages.common import ModelIdentity, NodeRef, TokenLogprobs
from tandem.messages.placement import GatewayHello
from tandem.sampling import MAX_TOP_LOGPROBS

SCORED = TokenLogprobs(logprob=-1.5, top=((2**31 - 1, -1.5),) * MAX_TOP_LOGPROBS)


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 64, 65, 3900])
@pytest.mark.parametrize("num_chars", [0, 1, 7_999, 8_001, 30_000, 260_000])
def test_every_output_fits_a_message(num_tokens: int, num_chars: int) -> None:
    text = ("\U0001f600" * num_chars)[: num_chars - 1] + "." * (num_chars > 0)
    ids = range(num_tokens)
    messages = wording.outputs(bytes(16), 7, ids, [SCORED] * num_tokens, text)
    for message in messages:
        assert Decoder[Output](Output).decode(encode(message)) == message
    assert "".join(m.text for m in messages) == text
    assert [i for m in messages for i in m.token_ids] == list(ids)
    assert all(len(m.logprobs) == len(m.token_ids) for m in messages)
    assert [m.index for m in messages] == [
        7 + sum(len(m.token_ids) for m in messages[:k]) for k in range(len(messages))
    ]
    if num_tokens > num_chars / wording.MAX_OUTPUT_CHARS:  # or some have no tokens
        assert all(m.token_ids for m in messages) and messages[-1].text[-1:] == text[-1:]


@pytest.mark.parametrize(("num_chars", "num_told"), [(20, 256), (256, 100)])
def test_a_hello_names_as_many_nodes_as_fit(num_chars: int, num_told: int) -> None:
    nodes = [
        NodeRef(
            node_id=f"{i:0{num_chars // 2}}",
            incarnation=2**60,
            epoch=2**50 + i,
            control_address="t" * num_chars,
        )
        for i in range(1000)
    ]
    hello = GatewayHello(
        gateway_id="g" * 128,
        incarnation=2**60,
        model=ModelIdentity(
            served_name="m",
            weights_fingerprint="w",
            tokenizer_fingerprint="t",
            dtype="",
            max_model_len=1,
            vocab_size=1,
        ),
        num_live_requests=1000,
        nodes=wording.hello_nodes(nodes),
    )
    assert Decoder[GatewayHello](GatewayHello).decode(encode(hello)) == hello
    assert num_told <= len(hello.nodes) <= 256
    assert list(hello.nodes) == nodes[::-1][: len(hello.nodes)]
