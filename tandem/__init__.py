"""What every process and every user runs on: messages, sockets, states, config, the client.

A first use, with a deployment started by `tandem up`:

    from tandem import Client, SamplingParams

    with Client("tcp://127.0.0.1:7301") as client:
        for text in client.submit("def fibonacci(n):", params=SamplingParams(max_tokens=64)).text():
            print(text, end="", flush=True)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tandem.async_client import AsyncClient
    from tandem.async_stream import AsyncStream, Result
    from tandem.client import Client, Stream
    from tandem.errors import (
        ContextTooLongError,
        DeadlineExceededError,
        GatewayUnreachableError,
        InternalError,
        InvalidRequestError,
        NodeFailedError,
        OverloadedError,
        RateLimitedError,
        RequestCancelledError,
        SuspectedPoisonError,
        TandemError,
        UnavailableError,
        UnknownModelError,
        UnknownSlaClassError,
    )
    from tandem.messages.client import ChatMessage
    from tandem.sampling import SamplingParams

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "ChatMessage",
    "Client",
    "ContextTooLongError",
    "DeadlineExceededError",
    "GatewayUnreachableError",
    "InternalError",
    "InvalidRequestError",
    "NodeFailedError",
    "OverloadedError",
    "RateLimitedError",
    "RequestCancelledError",
    "Result",
    "SamplingParams",
    "Stream",
    "SuspectedPoisonError",
    "TandemError",
    "UnavailableError",
    "UnknownModelError",
    "UnknownSlaClassError",
]

_HOMES = {
    "AsyncClient": "async_client",
    "AsyncStream": "async_stream",
    "ChatMessage": "messages.client",
    "Client": "client",
    "Result": "async_stream",
    "SamplingParams": "sampling",
    "Stream": "client",
}


def __getattr__(name: str) -> object:
    """Import what is asked for: `tandem --help` shall not wait for numpy and ZeroMQ (0.25 s)."""
    if name not in __all__:
        raise AttributeError(f"module 'tandem' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tandem.{_HOMES.get(name, 'errors')}"), name)
