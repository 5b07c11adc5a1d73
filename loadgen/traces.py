"""Workloads: request lengths, arrival times and shared prefixes, read from published traces.

Formats, by what the file holds: Mooncake JSON lines (timestamp in ms, lengths, `hash_ids` of
512-token blocks), Azure CSV (TIMESTAMP, ContextTokens, GeneratedTokens), and CSV with lengths only
(num_prefill_tokens, num_decode_tokens: ShareGPT), which needs arrivals of its own.
"""

import csv
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import msgspec

MOONCAKE_BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request: `num_output` tokens are really generated, and nobody knows that before.

    `blocks` name the full blocks of the prompt, each with all before it: equal ids, equal prefix.
    """

    arrived_at: float
    num_prompt: int
    num_output: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of their arrival, in seconds from 0. `block_tokens` 0: no prefixes."""

    name: str
    requests: tuple[TraceRequest, ...]
    has_times: bool
    block_tokens: int = 0

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last."""
        return self.requests[-1].arrived_at - self.requests[0].arrived_at if self.requests else 0.0

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.requests) / self.duration_s if self.duration_s > 0 else 0.0

    def scaled(self, factor: float) -> "Trace":
        """Times divided by `factor`: its rate grows by as much."""
        scaled = (replace(r, arrived_at=r.arrived_at / factor) for r in self.requests)
        return replace(self, requests=tuple(scaled))


class _MooncakeRow(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def constant_trace(num_prompt: int, num_output: int) -> Trace:
    """Requests of one length, as many as are asked for."""
    if num_prompt < 1 or num_output < 1:
        raise ValueError(f"lengths {num_prompt} and {num_output}: both must be at least 1")
    request = TraceRequest(arrived_at=0.0, num_prompt=num_prompt, num_output=num_output)
    return Trace(f"{num_prompt}+{num_output} tokens", (request,), has_times=False)


def read_trace(path: Path) -> Trace:
    """The trace of a file. Raises ValueError saying which formats there are."""
    if not path.is_file():
        raise ValueError(
            f"no trace at {path}: give a Mooncake .jsonl, or an Azure or ShareGPT .csv"
        )
    try:
        if path.suffix == ".jsonl":
            return _read_mooncake(path)
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            columns = set(reader.fieldnames or ())
            if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= columns:
                return _read_azure(path, reader)
            if {"num_prefill_tokens", "num_decode_tokens"} <= columns:
                return _read_lengths(path, reader)
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    raise ValueError(
        f"{path} has columns {sorted(columns)}: expected TIMESTAMP, ContextTokens, GeneratedTokens "
        "(Azure), or num_prefill_tokens, num_decode_tokens (lengths only)"
    )


def _read_mooncake(path: Path) -> Trace:
    requests = []
    for line in path.read_bytes().splitlines():
        row = msgspec.json.decode(line, type=_MooncakeRow)
        num_full = row.input_length // MOONCAKE_BLOCK_TOKENS
        requests.append(
            TraceRequest(
                arrived_at=row.timestamp / 1e3,
                num_prompt=max(1, row.input_length),
                num_output=max(1, row.output_length),
                blocks=tuple(row.hash_ids[:num_full]),
            )
        )
    return _in_order(path.stem, requests, MOONCAKE_BLOCK_TOKENS)


def _read_azure(path: Path, rows: Iterable[dict[str, str]]) -> Trace:
    requests = []
    for row in rows:
        at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()  # microseconds at most
        num_prompt, num_output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        requests.append(TraceRequest(at, max(1, num_prompt), max(1, num_output)))
    return _in_order(path.stem, requests, 0)


def _read_lengths(path: Path, rows: Iterable[dict[str, str]]) -> Trace:
    requests = tuple(
        TraceRequest(
            arrived_at=0.0,
            num_prompt=max(1, int(float(row["num_prefill_tokens"]))),
            num_output=max(1, int(float(row["num_decode_tokens"]))),
        )
        for row in rows
    )
    return Trace(path.stem, requests, has_times=False)


def _in_order(name: str, requests: list[TraceRequest], block_tokens: int) -> Trace:
    requests.sort(key=lambda r: r.arrived_at)
    first = requests[0].arrived_at if requests else 0.0
    moved = tuple(replace(r, arrived_at=r.arrived_at - first) for r in requests)
    return Trace(name, moved, has_times=True, block_tokens=block_tokens)


def sampled(trace: Trace, num_requests: int, seed: int) -> Trace:
    """Lengths drawn from a trace without times; without replacement while there are enough."""
    rng = random.Random(f"lengths {seed}")
    count = len(trace.requests)
    if count == 0:
        raise ValueError(f"the trace {trace.name} has no requests")
    drawn: list[TraceRequest] = []
    while len(drawn) < num_requests:
        drawn += rng.sample(trace.requests, min(count, num_requests - len(drawn)))
    return replace(trace, requests=tuple(drawn))


def overlaid(trace: Trace, num_requests: int, seed: int) -> Trace:
    """A random window of a trace with times, or, where it is too short, copies of it on each other.

    Copies are shifted by a random time and wrapped round. The rate grows with their number, the
    shape of the load gets smoother. Prefixes are shared within a copy and not between copies: other
    users ask other things.
    """
    count = len(trace.requests)
    rng = random.Random(f"shifts {seed}")
    if num_requests <= count:
        first = rng.randrange(count - num_requests + 1)
        window = trace.requests[first : first + num_requests]
        moved = (replace(r, arrived_at=r.arrived_at - window[0].arrived_at) for r in window)
        return replace(trace, requests=tuple(moved))
    period = trace.duration_s * count / max(1, count - 1)
    num_blocks = 1 + max((b for r in trace.requests for b in r.blocks), default=0)
    copies: list[TraceRequest] = list(trace.requests)
    for number in range(1, -(-num_requests // count)):
        shift, offset = rng.uniform(0.0, period), number * num_blocks
        copies += [
            replace(
                r,
                arrived_at=(r.arrived_at + shift) % period,
                blocks=tuple(offset + b for b in r.blocks),
            )
            for r in trace.requests
        ]
    copies.sort(key=lambda r: r.arrived_at)
    if num_requests < len(copies):  # thinned evenly, so that the last copy is not cut off in time
        chosen = sorted(rng.sample(range(len(copies)), num_requests))
        copies = [copies[i] for i in chosen]
    return replace(trace, requests=tuple(copies))
