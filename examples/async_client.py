"""Tandem's client for asyncio: many streams of one event loop, each with its time to first token.

python examples/async_client.py tcp://127.0.0.1:7301
"""

import asyncio
import sys
import time

from tandem import AsyncClient, SamplingParams

PROMPTS = ["def add(a, b):", "import os", "class Stack:", "for i in range("]


async def ask(client: AsyncClient, prompt: str) -> str:
    """One answer, and how long its first token took."""
    began = time.perf_counter()
    stream = await client.submit(prompt, params=SamplingParams(max_tokens=24, temperature=0.0))
    first_ms = 0.0
    async for _ in stream:
        first_ms = first_ms or (time.perf_counter() - began) * 1e3
    return f"{first_ms:6.1f} ms  {prompt}{stream.result.text.splitlines()[0]}"


async def main(gateway: str) -> None:
    """All prompts at once."""
    async with AsyncClient(gateway) as client:
        for line in await asyncio.gather(*(ask(client, prompt) for prompt in PROMPTS)):
            print(line)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
