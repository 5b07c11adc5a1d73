"""OpenAI's asyncio client: many streams of one event loop, each with its time to first token.

python examples/openai_async.py http://127.0.0.1:8000
"""

import asyncio
import sys
import time

import openai

QUESTIONS = ["add two numbers", "sort a list", "read a file", "count words"]


async def ask(client: openai.AsyncOpenAI, model: str, question: str) -> str:
    """One answer, and how long its first token took."""
    began, first_ms, text = time.perf_counter(), 0.0, ""
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=24,
        temperature=0,
        stream=True,
    )
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        if text and not first_ms:
            first_ms = (time.perf_counter() - began) * 1e3
    return f"{first_ms:6.1f} ms  {question}: {text!r}"


async def main(gateway: str) -> None:
    """All questions at once."""
    async with openai.AsyncOpenAI(base_url=f"{gateway}/v1", api_key="none") as client:
        model = (await client.models.list()).data[0].id
        for line in await asyncio.gather(*(ask(client, model, each) for each in QUESTIONS)):
            print(line)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
