"""Valid messages of every link, drawn from their types, and damage to their frames."""

import random
import string
from typing import Any

import msgspec
from msgspec import inspect

from tandem.codec import encode
from tandem.frames import Blob, TokenIds
from tandem.messages.client import ToClient, ToGateway
from tandem.messages.handoff import FromOwner, FromWriter
from tandem.messages.membership import FromNode, FromOperator, ToNode
from tandem.messages.placement import FromGateway, ToGatewayFromCoordinator
from tandem.messages.serving import FromGatewayToNode, FromNodeToGateway

LINKS: dict[str, Any] = {
    "client to gateway": ToGateway,
    "gateway to client": ToClient,
    "node to coordinator": FromNode,
    "operator to coordinator": FromOperator,
    "coordinator to node": ToNode,
    "gateway to coordinator": FromGateway,
    "coordinator to gateway": ToGatewayFromCoordinator,
    "gateway to node": FromGatewayToNode,
    "node to gateway": FromNodeToGateway,
    "writer to owner": FromWriter,
    "owner to writer": FromOwner,
}
NAME_CHARS = string.ascii_letters + string.digits + "._:/@+-"
Rng = random.Random
# What parsers stumble over: lengths, extensions, floats that are none, invalid UTF-8, deep nests.
NASTY = (
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xd4\x05\x00",
    b"\xc7\x0c\xff" + b"\xff" * 12, b"\xcb\x7f\xf8" + bytes(6), b"\xcb\x7f\xf0" + bytes(6),
    b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7), b"\xa2\xff\xfe", b"\xc0", b"\xc1", b"\x80",
    b"\x90", b"\x91" * 40, b"\x82\xa1a\x01\xa1a\x02", b"\xc2", b"\x00", b"\xff",
)  # fmt: skip


def members_of(union: Any) -> tuple[type, ...]:
    """The structs of a link."""
    return tuple(getattr(union, "__args__", (union,)))


def draw_message(kind: type, rng: Rng) -> msgspec.Struct:
    """A valid message of this type."""
    message: msgspec.Struct = _draw(inspect.type_info(kind), rng)
    return message


def _draw(info: Any, rng: Rng) -> Any:
    match info:
        case inspect.StructType():
            values = {
                field.name: _draw(field.type, rng)
                for field in info.fields
                if field.required or rng.random() < 0.5
            }
            return info.cls(**values)
        case inspect.UnionType():
            return _draw(rng.choice(info.types), rng)
        case inspect.LiteralType():
            return rng.choice(info.values)
        case inspect.CustomType() if info.cls is TokenIds:
            return TokenIds([rng.randrange(2**31) for _ in range(rng.randrange(5))])
        case inspect.CustomType():
            return Blob(rng.randbytes(8 * rng.randrange(4)))
        case inspect.DictType():
            size = rng.randrange(3)
            return {_draw(info.key_type, rng): _draw(info.value_type, rng) for _ in range(size)}
        case inspect.VarTupleType():
            size = rng.randrange(info.min_length or 0, 3)
            return tuple(_draw(info.item_type, rng) for _ in range(size))
        case inspect.TupleType():
            return tuple(_draw(item, rng) for item in info.item_types)
    return _draw_scalar(info, rng)


def _draw_scalar(info: Any, rng: Rng) -> Any:
    match info:
        case inspect.NoneType():
            return None
        case inspect.BoolType():
            return rng.random() < 0.5
        case inspect.IntType():
            low = -(2**63) if info.ge is None else info.ge
            high = 2**63 - 1 if info.le is None else info.le
            high = high if info.lt is None else info.lt - 1
            return rng.choice([low, high, rng.randint(low, high), max(low, min(high, 3))])
        case inspect.FloatType():
            least = -1e9 if info.ge is None else max(info.ge, -1e300)
            most = 1e9 if info.le is None else min(info.le, 1e300)
            return float(rng.choice([least, most, rng.uniform(least, most)]))
        case inspect.StrType():
            low = info.min_length or 0
            size = rng.randint(low, max(low, min(info.max_length or 20, 20)))
            return "".join(rng.choices(NAME_CHARS, k=size))
        case inspect.BytesType():
            return rng.randbytes(rng.randint(info.min_length or 0, info.max_length or 20))
    raise NotImplementedError(f"teach the fuzzer to draw {info}")


def mutate(frames: list[bytes], rng: Rng, other: list[bytes]) -> list[bytes]:
    """One to four pieces of damage, most of them to the MessagePack frame; `other` lends bytes."""
    damaged = list(frames)
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.15:
            _mutate_frames(damaged, rng, other)
        if len(damaged) > 1:
            damaged[1] = _mutate_bytes(damaged[1], rng, other[1] if len(other) > 1 else b"")
    return damaged


def _mutate_frames(frames: list[bytes], rng: Rng, other: list[bytes]) -> None:
    match rng.randrange(4):
        case 0:
            frames.append(rng.randbytes(rng.randrange(9)))
        case 1 if frames:
            del frames[rng.randrange(len(frames))]
        case 2 if frames:
            frames.insert(rng.randrange(len(frames)), rng.choice(other or [b""]))
        case _ if frames:
            index = rng.randrange(len(frames))
            frames[index] = _mutate_bytes(frames[index], rng, b"")


def _mutate_bytes(data: bytes, rng: Rng, other: bytes) -> bytes:
    """Flip, cut, repeat, insert what is nasty, or splice in a part of another frame."""
    at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    match rng.randrange(6):
        case 0 if data:
            at = min(at, len(data) - 1)
            return data[:at] + bytes([data[at] ^ rng.randint(1, 255)]) + data[at + 1 :]
        case 1:
            return data[:at] + data[end:]
        case 2:
            return data[:end] + data[at:end] + data[end:]
        case 3:
            return data[:at] + rng.choice(NASTY) + data[end:]
        case 4 if other:
            start = rng.randrange(len(other))
            return data[:at] + other[start : start + rng.randrange(1, 40)] + data[end:]
    return data[:at] + rng.choice(NASTY) + data[at:]


def valid_frames(rng: Rng, union: Any) -> list[bytes]:
    """The frames of a valid message of a link."""
    return encode(draw_message(rng.choice(members_of(union)), rng))
