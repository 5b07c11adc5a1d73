"""Opens a session with an OpenAI-compatible server and finds out which model it serves."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator

import aiohttp

from loadgen.http_target import LONGEST_LINE_BYTES, Endpoint, HttpTarget
from tandem.errors import UnavailableError

KEY_VARIABLE = "OPENAI_API_KEY"
AGAIN_S = 0.5


@contextlib.asynccontextmanager
async def open_http_target(
    url: str, model: str | None, endpoint: Endpoint, max_in_flight: int | None, wait_s: float
) -> AsyncIterator[HttpTarget]:
    """A target that answers. The key comes from OPENAI_API_KEY. Raises UnavailableError."""
    key = os.environ.get(KEY_VARIABLE)
    session = aiohttp.ClientSession(
        headers={} if key is None else {"Authorization": f"Bearer {key}"},
        connector=aiohttp.TCPConnector(limit=max_in_flight or 0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
        read_bufsize=LONGEST_LINE_BYTES,
    )
    async with session:
        url = url.rstrip("/").removesuffix("/v1")
        yield HttpTarget(session, url, model or await _first_model(session, url, wait_s), endpoint)


async def _first_model(session: aiohttp.ClientSession, url: str, wait_s: float) -> str:
    give_up_at = time.monotonic() + wait_s
    while True:
        try:
            async with session.get(f"{url}/v1/models") as answer:
                answer.raise_for_status()
                return str((await answer.json())["data"][0]["id"])
        except (aiohttp.ClientError, OSError, KeyError, IndexError, ValueError) as error:
            is_refusal = isinstance(error, aiohttp.ClientResponseError) and error.status < 500
            if is_refusal or time.monotonic() > give_up_at:
                raise UnavailableError(
                    f"{url}/v1/models: {error}: is the server there, and {KEY_VARIABLE} its key?",
                    code="unavailable",
                ) from None
        await asyncio.sleep(AGAIN_S)
