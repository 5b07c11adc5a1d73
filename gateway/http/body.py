"""A call's JSON body, read within its limits and decoded by type; what is wrong with it is told."""

import asyncio
import json
import re
from typing import Any, NoReturn, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from gateway.http.call import Call, CallLimits, call_of
from gateway.http.errors import ApiError

T = TypeVar("T")
HANG_UP = {"Connection": "close"}  # the rest of the body is not waited for
MAX_DEPTH = 64
MAX_PARTS = 150_000
INLINE_BYTES = 256 << 10  # decoding more would hold up every stream
MAX_ECHO_CHARS = 300
JSON_TYPE = re.compile(r"application/(?:[\w.-]+\+)?json\s*(?:;.*)?", re.IGNORECASE)


async def read_body(request: Request, type: type[T]) -> T:
    """The body as `type`. From then on the handler is cancelled when the caller hangs up.

    Raises ApiError: 400 for what is no JSON or not of the type (`param` is the field), 408, 413,
    415.
    """
    call = call_of(request)
    if not JSON_TYPE.fullmatch(request.headers.get("content-type", "")):
        raise ApiError(415, "the body must be JSON: send `Content-Type: application/json`")
    body = await _read(request, call)
    call.watch(request.receive)
    if len(body) <= INLINE_BYTES:
        return decode(body, type)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(call.thread, decode, body, type)


async def _read(request: Request, call: Call) -> bytes:
    limits = call.limits
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limits.max_body_bytes:
        _too_large(limits)
    loop = asyncio.get_running_loop()
    started, body = loop.time(), bytearray()
    while True:
        left_s = limits.body_grace_s + len(body) / limits.min_body_bytes_per_s
        try:
            async with asyncio.timeout_at(started + left_s):
                message = await request.receive()
        except TimeoutError:
            text = f"{len(body)} bytes of the body came in {left_s:.0f} s: send it faster"
            raise ApiError(408, text, headers=HANG_UP) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        body += chunk
        if len(body) > limits.max_body_bytes:
            _too_large(limits)
        call.take_room(len(chunk))
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(limits: CallLimits) -> NoReturn:
    text = (
        f"the body is larger than {limits.max_body_bytes >> 20} MiB, which is what this gateway "
        "takes (--http-max-body-mib)"
    )
    raise ApiError(413, text, headers=HANG_UP)


def decode(body: bytes, type: type[T]) -> T:
    """JSON by type. Raises ApiError."""
    try:
        _require_plain(body)
        return msgspec.json.decode(body, type=type)
    except msgspec.ValidationError as error:
        text, _, path = str(error).rpartition(" - at `")
        param = path.rstrip("`").removeprefix("$").removeprefix(".") or None
        text = (text or str(error))[:MAX_ECHO_CHARS]
        named = f"{param}: {text}" if param else text
        raise ApiError(400, named, param=param, code="invalid_request") from None
    except RecursionError:
        _too_deep()
    except ValueError as error:  # of either decoder
        text = f"the body is not JSON as it should be: {str(error)[:MAX_ECHO_CHARS]}"
        raise ApiError(400, text, code="invalid_request") from None


def _require_plain(body: bytes) -> None:
    """Refuse what decoders disagree on: NaN, repeated keys; and what is nested too deep, or has
    more parts than any request needs: a million keys in 11 MB hold the interpreter for seconds."""
    num_quotes = body.count(b'"') - body.count(b'\\"')
    if num_quotes > 2 * MAX_PARTS or body.count(b"[") + body.count(b"{") > MAX_PARTS:
        text = f"the body has more than {MAX_PARTS} texts, lists or objects"
        raise ApiError(400, text, code="invalid_request")
    tree = json.loads(body, object_pairs_hook=_unique, parse_constant=_no_constant)
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        _check_depth(tree)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check_depth(tree: Any) -> None:  # noqa: ANN401
    level = [tree]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    _too_deep()


def _too_deep() -> NoReturn:
    text = f"the body is nested more than {MAX_DEPTH} levels deep"
    raise ApiError(400, text, code="invalid_request")
