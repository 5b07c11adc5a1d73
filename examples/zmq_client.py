"""Tandem's own client: a stream, several prompts at once, an SLA class, a cancelled request.

python examples/zmq_client.py tcp://127.0.0.1:7301
"""

import sys

from tandem import Client, SamplingParams


def main(gateway: str) -> None:
    """Everything once."""
    with Client(gateway) as client:
        stream = client.submit("def add(a, b):", params=SamplingParams(max_tokens=30, seed=7))
        for text in stream.text():
            print(text, end="", flush=True)
        print(f"\n{stream.result.usage}")

        greedy = SamplingParams(max_tokens=20, temperature=0.0)
        for result in client.generate(["import os", "class A:"], params=greedy):
            print(repr(result.text), result.finish_reason)

        long = client.submit("x = [", params=SamplingParams(max_tokens=500), sla_class="batch")
        print("first token:", next(iter(long)).token_ids)
        long.cancel()


if __name__ == "__main__":
    main(sys.argv[1])
