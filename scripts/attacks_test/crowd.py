"""Thousands of connections at once that say nothing: who is served then, and after it?"""

import asyncio
import collections
import time

import aiohttp

from scripts.attacks_test.outcome import Outcome
from tandem.launch import LocalCluster

MODEL = "models/demo"
NUM_CONNECTIONS, NUM_QUICK = 5000, 300
FAKE = ("--device", "fake")
# The gateway cuts a connection that says nothing after 10 s.
PATIENCE_S = 30.0
COMPLETION = {"prompt": "def f", "max_tokens": 4}


async def attack(quick: bool) -> Outcome:
    """5,000 connections, held until the gateway ends them; a request while they are there."""
    outcome = Outcome()
    num = NUM_QUICK if quick else NUM_CONNECTIONS
    with LocalCluster(model=MODEL, node_args=FAKE) as cluster:
        port = int(cluster.http_address.rsplit(":", 1)[1])
        async with aiohttp.ClientSession(cluster.http_address) as early:
            assert await _completes(early), "the gateway serves nobody"
            began = time.monotonic()
            silent = asyncio.gather(*(_hold(port) for _ in range(num)))
            await asyncio.sleep(2.0)
            outcome.expect(await _completes(early), "a caller that was there is not served")
            endings = collections.Counter(await silent)
            outcome.note("connections", str(num))
            outcome.note("how they ended", ", ".join(f"{k}: {n}" for k, n in endings.items()))
            outcome.note("all ended after", f"{time.monotonic() - began:.1f} s")
        odd = set(endings) - {"408", "503 with Retry-After", "closed"}
        outcome.expect(not odd, f"connections ended by {sorted(odd)}")
        async with aiohttp.ClientSession(cluster.http_address) as late:
            outcome.expect(await _completes(late), "nobody is served after the crowd")
        outcome.expect(not cluster.dead(), f"processes ended: {cluster.dead()}")
    return outcome


async def _hold(port: int) -> str:
    """Open a connection, say nothing, wait for its end."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError as error:
        return type(error).__name__
    try:
        answer = await asyncio.wait_for(reader.read(4096), PATIENCE_S)
    except TimeoutError:
        return "never"
    except ConnectionError:
        return "reset"
    finally:
        writer.close()
    if not answer:
        return "closed"
    status = answer.split(b" ", 2)[1].decode()
    has_advice = b"retry-after:" in answer.lower()
    return f"{status} with Retry-After" if has_advice else status


async def _completes(session: aiohttp.ClientSession) -> bool:
    try:
        async with session.post(
            "/v1/completions", json=COMPLETION, timeout=aiohttp.ClientTimeout(15.0)
        ) as answer:
            return answer.status == 200 and "choices" in await answer.json()
    except (aiohttp.ClientError, TimeoutError):
        return False
