"""Codec and binary frames: round trips, foreign speakers, limits, and bytes of an attacker."""

import time
import tracemalloc
from typing import Any

import hypothesis
import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import strategies

from tandem.codec import (
    MAGIC,
    MAX_BINARY_BYTES,
    MAX_CONTROL_BYTES,
    MAX_FRAMES,
    Decoder,
    ProtocolError,
    encode,
)
from tandem.frames import Blob, TokenIds
from tandem.messages.client import (
    ChatMessage,
    ClientPing,
    ClientPong,
    Output,
    Submit,
    ToClient,
    ToGateway,
)
from tandem.messages.common import NodeRef, SlaTargets, TokenLogprobs
from tandem.messages.membership import FromNode
from tandem.messages.serving import Decode, FromGatewayToNode, RequestSpec
from tandem.sampling import SamplingParams

SUBMIT = Submit(
    label="1",
    prompt_ids=TokenIds([1, 2, 2**31 - 1]),
    params=SamplingParams(temperature=0.5, stop=("\n",), logit_bias={5: -1.0}, seed=2**64 - 1),
    ttft_ms=12.5,
)
DECODE = Decode(
    spec=RequestSpec(
        request_id=b"0" * 16, attempt=2, prompt_ids=TokenIds(range(2000)),
        output_ids=TokenIds([7]), params=SamplingParams(max_tokens=9), seed=1, choice=0,
        tenant="default", priority=0,
        targets=SlaTargets(sla_class="standard", ttft_ms=1.0, tpot_ms=1.0),
        deadline_s=None, sequence=3,
    ),
    prefill=NodeRef(
        node_id="prefill-0", incarnation=1, epoch=1, control_address="tcp://127.0.0.1:1"
    ),
)  # fmt: skip
OUTPUT = Output(
    request_id=b"r" * 16, index=3, token_ids=(4, 5), text="é",
    logprobs=(TokenLogprobs(logprob=-0.5, top=((4, -0.5),)),) * 2,
)  # fmt: skip


def reject(*frames: bytes, union: Any = ToGateway) -> str:
    """The reason for which the frames are no message."""
    with pytest.raises(ProtocolError) as caught:
        Decoder[Any](union).decode(frames)
    return str(caught.value)


def pack(**fields: object) -> bytes:
    return bytes(msgpack.packb(fields))


@pytest.mark.parametrize(
    ("message", "union", "num_frames"),
    [
        (SUBMIT, ToGateway, 3),
        (Submit(label="", prompt=Blob("é".encode())), ToGateway, 3),
        (Submit(label="", chat=(ChatMessage(role="user", content="x"),)), ToGateway, 2),
        (DECODE, FromGatewayToNode, 4),
        (OUTPUT, ToClient, 2),
    ],
)
def test_messages_come_back_equal(message: Any, union: Any, num_frames: int) -> None:
    frames = encode(message)
    assert len(frames) == num_frames and frames[0] == MAGIC
    assert Decoder[Any](union).decode(frames) == message


def test_any_messagepack_speaker_can_talk_to_us() -> None:
    fields = {
        "type": "Submit",
        "label": "from elsewhere",
        "prompt_ids": 0,  # the index of its binary frame
        "params": {"temperature": 0, "max_tokens": 3},
        "sla_class": "batch",
    }
    frames = [b"TDM\x01", bytes(msgpack.packb(fields)), np.array([1, 2], dtype="<i4").tobytes()]
    assert Decoder[ToGateway](ToGateway).decode(frames) == Submit(
        label="from elsewhere",
        prompt_ids=TokenIds([1, 2]),
        params=SamplingParams(temperature=0.0, max_tokens=3),
        sla_class="batch",
    )


def test_any_messagepack_speaker_can_read_us() -> None:
    assert msgpack.unpackb(encode(OUTPUT)[1]) == {
        "type": "Output",
        "request_id": b"r" * 16,
        "index": 3,
        "token_ids": [4, 5],
        "text": "é",
        "logprobs": [[-0.5, [[4, -0.5]]]] * 2,
    }


def test_a_sender_learns_what_is_too_long() -> None:
    long = Submit(label="", chat=(ChatMessage(role="user", content="x" * MAX_CONTROL_BYTES),))
    with pytest.raises(ValueError, match=r"Submit needs \d+ bytes; a message may have 65,536"):
        encode(long)
    with pytest.raises(ValueError, match="binary field over 4 MiB"):
        encode(Submit(label="", prompt=Blob(bytes(MAX_BINARY_BYTES + 1))))
    most = Blob(bytes(MAX_BINARY_BYTES))
    with pytest.raises(ValueError, match="over 8 MiB in all"):
        encode(Submit(label="", prompt=most, prompt_ids=TokenIds([0] * (MAX_BINARY_BYTES // 4))))
    frames = encode(Submit(label="", prompt=Blob(bytes(MAX_BINARY_BYTES))))
    assert Decoder[Any](ToGateway).decode(frames).prompt is not None


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "0 frames; a message has 2 to 8"),
        ([MAGIC], "1 frames"),
        ([MAGIC] * (MAX_FRAMES + 1), "9 frames"),
        ([b"TDM\x00", b""], "version 0, this side 1"),
        ([b"TDM\x02", b""], "version 2, this side 1"),
        ([b"TDM1", b""], "version 49"),
        ([b"", b""], "not Tandem's"),
        ([b"GET / HTTP/1.1", b""], "not Tandem's"),
        ([MAGIC, bytes(MAX_CONTROL_BYTES + 1)], "control frame of 65537 bytes"),
        ([MAGIC, b"\x80", bytes(MAX_BINARY_BYTES + 1)], "binary frame over 4 MiB"),
        ([MAGIC, b""], "not a message"),
        ([MAGIC, b"", bytes(MAX_BINARY_BYTES), bytes(MAX_BINARY_BYTES)], "over 8 MiB in all"),
    ],
)
def test_frames_that_are_no_message(frames: list[bytes], words: str) -> None:
    assert words in reject(*frames)


@pytest.mark.parametrize(
    "control",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of 4 G entries
        b"\xdf\xff\xff\xff\xff",  # a map of 4 G entries
        b"\xc6\xff\xff\xff\xff\x78",  # 4 GB of bytes
        b"\xc9\xff\xff\xff\xff\x00",  # an extension of 4 GB
        (b"\xdd\x00\x10\x00\x00" * 200).ljust(MAX_CONTROL_BYTES, b"\x00"),  # nested preallocation
        b"\x91" * 1025 + b"\xc0",  # deep
        b"\x91" * (MAX_CONTROL_BYTES - 1) + b"\xc0",
        b"\x82\xa4type\xaaClientPing\xa5label" + b"\x91" * 60_000 + b"\xc0",
        b"\x81\xa1x" * 20_000 + b"\xc0",
        b"\xdd\x00\x00\xff\xf0" + b"\x90" * 65_520,  # an array of arrays
        b"\x81\x01\x01",  # a key that is no string
        b"\xd4\x05\x00",  # an extension
        b"\xc7\x0c\xff" + b"\xff" * 12,  # a timestamp out of range
        b"\x82\xa4type\xaaClientPing\xa5label\xa2\xff\xfe",  # no UTF-8
        b"\xc1",  # never used by MessagePack
        pack(type="ClientPing", label="x")[:-1],
        pack(type="ClientPing", label="x") + b"\x00",
    ],
)
def test_hostile_bytes_cost_neither_time_nor_memory(control: bytes) -> None:
    decoder = Decoder[Any](ToGateway)
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(ProtocolError) as caught:
        decoder.decode([MAGIC, control])
    seconds = time.perf_counter() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 0.1 and peak < 16 << 20
    assert len(str(caught.value)) < 1000  # it goes into a log line
    assert decoder.decode(encode(ClientPing(label="still works"))).label == "still works"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"type": "ClientPing"}, "label"),
        ({"type": "ClientPing", "label": "x", "more": 1}, "more"),
        ({"type": "ClientPing", "label": 7}, "label"),
        ({"type": "ClientPing", "label": "x" * 129}, "label"),
        ({"type": "Nothing", "label": "x"}, "Nothing"),
        ({"type": "Heartbeat", "label": "x"}, "Heartbeat"),  # of another link
        ({"label": "x"}, "type"),
        ({"type": "Submit", "label": "x", "model": "m" * 60_000}, "model"),
        ({"type": "Submit", "label": "x", "model": "a\x00b"}, "model"),
        ({"type": "Submit", "label": "x", "model": "a\nb"}, "model"),
        ({"type": "Submit", "label": "x", "model": "\x1b[31mred"}, "model"),
        ({"type": "Submit", "label": "x", "ttft_ms": float("inf")}, "ttft_ms"),
        ({"type": "Submit", "label": "x", "ttft_ms": float("nan")}, "ttft_ms"),
        ({"type": "Submit", "label": "x", "ttft_ms": -1.0}, "ttft_ms"),
        ({"type": "Submit", "label": "x", "priority": 101}, "priority"),
        ({"type": "Submit", "label": "x", "chat": [{"role": "root", "content": ""}]}, "role"),
        ({"type": "Submit", "label": "x", "params": {"stop": ["x"] * 17}}, "stop"),
        ({"type": "CancelRequest", "request_id": b"short"}, "request_id"),
    ],
)
def test_values_out_of_bounds_are_named(fields: dict[str, object], words: str) -> None:
    assert words in reject(MAGIC, pack(**fields))


@pytest.mark.parametrize(
    "control",
    [
        b"\x83\xa4type\xaaClientPing\xa5label\xa1x\xa5label\xa1x",
        b"\x83\xa4type\xa6Submit\xa5label\xa1x\xa6params\x82\xa5top_k\x01\xa5top_k\x02",
        b"\x83\xa4type\xa6Submit\xa5label\xa1x\xa6params\x81\xaalogit_bias\x82\x05\x01\x05\x02",
        b"\x83\xa4type\xa6Submit\xa5label\xa1x\xa6params\x81\xaalogit_bias\x82\x05\x01\xcc\x05\x02",
    ],
    ids=["field", "nested", "key", "key-otherwise"],
)
def test_no_key_comes_twice(control: bytes) -> None:
    assert "a map names a key twice" in reject(MAGIC, control)


@pytest.mark.parametrize("number", [2**63, 2**64 - 1])
@pytest.mark.parametrize("field", ["max_tokens", "top_k", "min_tokens", "logprobs"])
def test_whole_numbers_have_64_bits(field: str, number: int) -> None:
    assert field in reject(MAGIC, pack(type="Submit", label="x", params={field: number}))
    seed = pack(type="Submit", label="x", params={"seed": number})
    assert Decoder[Any](ToGateway).decode([MAGIC, seed]).params.seed == number


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_are_finite_on_every_link(number: float) -> None:
    logprobs = (TokenLogprobs(logprob=number),)
    alternatives = (TokenLogprobs(logprob=-1.0, top=((1, number),)),)
    for bad in (logprobs, alternatives):
        with pytest.raises(ProtocolError, match="logprobs"):
            Decoder[Any](ToClient).decode(encode(msgspec.structs.replace(OUTPUT, logprobs=bad)))


@pytest.mark.parametrize("sequence", [2**63, 2**64 - 1, -1])
def test_counters_are_bounded(sequence: int) -> None:
    control = pack(type="Goodbye", node_id="n", incarnation=1, epoch=sequence)
    assert "epoch" in reject(MAGIC, control, union=FromNode)


@pytest.mark.parametrize(
    ("index", "frames", "words"),
    [
        (0, [], "names frame 0 of 0"),
        (1, [b""], "names frame 1 of 1"),
        (-1, [b""], "names frame -1"),
        ("0", [b""], "names a frame by a str"),
        ([1, 2], [b""], "names a frame by a list"),
        (0, [b"123"], "3 bytes, not a multiple of 4"),
        (0, [b"", b""], "2 binary frames, 1 named"),
        (None, [b""], "1 binary frames, 0 named"),
    ],
)
def test_binary_fields_name_each_frame_once(index: object, frames: list[bytes], words: str) -> None:
    control = pack(type="Submit", label="x", prompt_ids=index)
    assert words in reject(MAGIC, control, *frames)


def test_two_fields_cannot_share_a_frame() -> None:
    control = pack(type="Submit", label="x", prompt_ids=0, prompt=0)
    assert "names frame 0 of 1" in reject(MAGIC, control, b"")


def test_a_decoder_forgets_the_frames_of_a_bad_message() -> None:
    decoder = Decoder[Any](ToGateway)
    with pytest.raises(ProtocolError):
        decoder.decode([MAGIC, pack(type="Submit", label="x", prompt_ids=0), b"123"])
    with pytest.raises(ProtocolError, match="frame 0 of 0"):
        decoder.decode([MAGIC, pack(type="Submit", label="x", prompt_ids=0)])


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(strategies.lists(strategies.binary(max_size=200), max_size=4))
def test_noise_is_a_protocol_error(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        Decoder[Any](ToGateway).decode([MAGIC, *frames])


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(strategies.data())
def test_a_flipped_byte_is_another_message_or_a_protocol_error(data: Any) -> None:
    frames = encode(SUBMIT)
    position = data.draw(strategies.integers(0, len(frames[1]) - 1))
    damaged = bytearray(frames[1])
    damaged[position] ^= data.draw(strategies.integers(1, 255))
    try:
        message = Decoder[Any](ToGateway).decode([MAGIC, bytes(damaged), frames[2]])
    except ProtocolError:
        return
    assert isinstance(message, Submit)


def test_only_frame_types_travel_as_frames() -> None:
    class Odd(msgspec.Struct):
        value: object

    with pytest.raises(NotImplementedError, match="complex is no wire type"):
        encode(Odd(value=1j))
    with pytest.raises(ProtocolError):
        Decoder[Any](ClientPing).decode(encode(ClientPong(
            label="", model="", ready=True, max_model_len=1
        )))  # fmt: skip


def test_token_ids_are_values() -> None:
    ids = TokenIds([1, 2, 3])
    assert ids == TokenIds(np.array([1, 2, 3], dtype=np.int64)) and hash(ids) == hash(
        TokenIds(iter([1, 2, 3]))
    )
    assert ids != TokenIds([1, 2]) and ids != [1, 2, 3] and len(ids) == 3
    assert ids.to_frame() == bytes([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0])
    assert TokenIds.from_frame(ids.to_frame()) == ids
    assert repr(TokenIds(range(9))) == "TokenIds([0, 1, 2, 3, 4, 5, 6, 7]..., n=9)"
    for array in (ids.array, TokenIds.from_frame(ids.to_frame()).array):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 5


def test_token_ids_keep_no_reference_to_what_they_were_made_from() -> None:
    source = np.array([1, 2], dtype=np.int32)
    ids = TokenIds(source)
    source[0] = 9
    assert ids.array.tolist() == [1, 2]


def test_blobs_are_values() -> None:
    assert Blob(b"ab") == Blob.from_frame(b"ab") and hash(Blob(b"ab")) == hash(Blob(b"ab"))
    assert Blob(b"ab") != Blob() and Blob(b"ab") != b"ab" and len(Blob(b"ab")) == 2
    assert repr(Blob(b"ab")) == "Blob(2 bytes)" and Blob(b"ab").to_frame() == b"ab"
