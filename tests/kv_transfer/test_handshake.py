"""Who may exchange pages, over what; and a whole node's bulk side from hello to copy."""

import msgspec
import pytest

from kv_transfer.handshake import OwnerSide, answer, host_id
from tandem.codec import Decoder, encode
from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity
from tandem.messages.handoff import (
    FromWriter,
    OwnerRefused,
    OwnerWelcome,
    TransportOffer,
    WriterHello,
)

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=8, page_size=16, dtype="float32")
MODEL = ModelIdentity(
    served_name="m",
    weights_fingerprint="w1",
    tokenizer_fingerprint="t1",
    dtype="float32",
    max_model_len=128,
    vocab_size=100,
)
SHARED = TransportOffer(transport="shared_memory", address="unix:@x")
ZMQ = TransportOffer(transport="zmq", address="tcp://127.0.0.1:1")
KEY = "k" * 40


def hello(**changes) -> WriterHello:
    fields = {
        "node_id": "p0",
        "incarnation": 1,
        "epoch": 2,
        "layout": LAYOUT,
        "model": MODEL,
        "host_id": "h",
        "transports": ("shared_memory", "zmq"),
    }
    return WriterHello(**(fields | changes))


def reply(
    message: WriterHello, offers=(SHARED, ZMQ), settled: str | None = None
) -> OwnerWelcome | OwnerRefused:
    owner = OwnerSide("d0", 5, LAYOUT, MODEL, "h", 9, tuple(offers))
    return answer(message, owner, epoch=6, settled=settled)


def transports(welcome: OwnerWelcome | OwnerRefused) -> list[str]:
    assert isinstance(welcome, OwnerWelcome)
    return [offer.transport for offer in welcome.offers]


def test_all_that_both_speak_is_offered_in_the_writers_order() -> None:
    welcome = reply(hello())
    assert isinstance(welcome, OwnerWelcome)
    assert welcome.offers == (SHARED, ZMQ)
    assert welcome.transport is None
    assert (welcome.node_id, welcome.incarnation, welcome.num_pages) == ("d0", 5, 9)
    assert transports(reply(hello(transports=("zmq",)))) == ["zmq"]
    assert transports(reply(hello(transports=("zmq", "shared_memory")))) == ["zmq", "shared_memory"]


def test_memory_is_not_shared_across_hosts() -> None:
    assert transports(reply(hello(host_id="elsewhere"))) == ["zmq"]
    refused = reply(hello(host_id="elsewhere", transports=("shared_memory",)))
    assert isinstance(refused, OwnerRefused)
    assert "the writer on another host accepts ['shared_memory']" in refused.reason


def test_a_choice_among_the_offers_is_confirmed_and_another_is_refused() -> None:
    confirmed = reply(hello(chosen="zmq"))
    assert isinstance(confirmed, OwnerWelcome)
    assert confirmed.transport == "zmq"
    refused = reply(hello(chosen="shared_memory", host_id="elsewhere"))
    assert isinstance(refused, OwnerRefused)
    assert "chose shared_memory, the owner offers it ['zmq']" in refused.reason


def test_what_was_settled_is_the_only_offer_from_then_on() -> None:
    assert transports(reply(hello(), settled="shared_memory")) == ["shared_memory"]
    assert isinstance(reply(hello(chosen="zmq"), settled="shared_memory"), OwnerRefused)


@pytest.mark.parametrize(("owners", "writers"), [(KEY, None), (None, KEY)])
def test_zmq_with_a_key_on_one_side_only_is_no_offer(owners, writers) -> None:
    offers = (SHARED, msgspec.structs.replace(ZMQ, key=owners))
    assert transports(reply(hello(bulk_key=writers), offers)) == ["shared_memory"]
    refused = reply(hello(bulk_key=writers, transports=("zmq",)), offers)
    assert isinstance(refused, OwnerRefused)
    assert "both with --keys or both without" in refused.reason
    assert transports(reply(hello(bulk_key=KEY), (msgspec.structs.replace(ZMQ, key=KEY),)))


def test_without_a_common_transport_both_lists_are_named() -> None:
    refused = reply(hello(transports=("shared_memory",)), offers=(ZMQ,))
    assert isinstance(refused, OwnerRefused)
    assert "['zmq']" in refused.reason
    assert "['shared_memory']" in refused.reason


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        (
            {"layout": msgspec.structs.replace(LAYOUT, page_size=32)},
            ("page_size", "16 here", "32 there"),
        ),
        (
            {"layout": msgspec.structs.replace(LAYOUT, dtype="bfloat16")},
            ("dtype", "float32", "bfloat16"),
        ),
        (
            {"model": msgspec.structs.replace(MODEL, weights_fingerprint="w2")},
            ("weights fingerprint", "w1 here", "w2 there"),
        ),
        (
            {"model": msgspec.structs.replace(MODEL, tokenizer_fingerprint="t2")},
            ("tokenizer fingerprint", "t1 here", "t2 there"),
        ),
    ],
)
def test_w20_what_differs_is_refused_with_both_values(changes, values) -> None:
    refused = reply(hello(**changes))
    assert isinstance(refused, OwnerRefused)
    assert all(value in refused.reason for value in values), refused.reason


def test_names_and_limits_may_differ() -> None:
    model = msgspec.structs.replace(MODEL, served_name="alias", max_model_len=64)
    assert isinstance(reply(hello(model=model)), OwnerWelcome)


def test_host_id_is_stable_and_fits_the_wire() -> None:
    assert host_id() == host_id()
    decoder: Decoder[WriterHello] = Decoder(FromWriter)
    message = hello(host_id=host_id())
    assert decoder.decode(encode(message)) == message
