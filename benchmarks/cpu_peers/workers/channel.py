"""How an engine in a process of its own is driven: one JSON line per task in, one per answer out.

The first line out is `{"version": ...}`, once the engine is ready. A task is a list of requests,
`{"prompt_ids", "num_tokens"}`, all submitted at once; an answer has for each of them when its
first and its last token came, in seconds after that, and its tokens. Whatever else a library
prints goes to standard error.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """Greedy, exactly `num_tokens` output tokens."""

    prompt_ids: list[int]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds after the task was given."""

    first_s: float
    last_s: float
    token_ids: list[int]


def serve(start: Callable[[], tuple[str, Callable[[list[Request]], list[Answer]]]]) -> None:
    """Start the engine (its version, its way to answer), then answer until the input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    version, answer = start()
    print(json.dumps({"version": version}), file=out, flush=True)
    for line in sys.stdin:
        requests = [Request(**each) for each in json.loads(line)]
        print(json.dumps([asdict(each) for each in answer(requests)]), file=out, flush=True)


def parse() -> argparse.Namespace:
    """What every worker is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args()
