"""What every process and every user runs on: messages, sockets, states, config, the client.

A first use, with a deployment started by `tandem up`:

    from tandem import Client, SamplingParams

    with Client("tcp://127.0.0.1:7301") as client:
        for text in client.submit("def fibonacci(n):", params=SamplingParams(max_tokens=64)).text():
            print(text, end="", flush=True)
"""

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
