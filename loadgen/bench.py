"""`tandem bench`: load for Tandem over ZeroMQ or for any OpenAI-compatible server, measured.

The flags that users of other load generators know have their names.
"""

import argparse
import asyncio
import contextlib
import importlib
import importlib.util
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from tqdm import tqdm

from loadgen.drive import Driven, drive
from loadgen.goodput import parse_targets
from loadgen.lengths import parse_lengths
from loadgen.plot import plot
from loadgen.report import json_line, machine
from loadgen.saved import compare, load, save
from loadgen.summary import LATENCIES, records, summarise
from loadgen.target import Target, ZmqTarget
from loadgen.traces import read_trace
from loadgen.traffic import Due, Shape, make_traffic
from tandem.async_client import AsyncClient, RequestOptions

Say = Callable[[str], object]


def make_load(args: argparse.Namespace) -> list[Due]:
    """The requests that the flags describe. Raises ValueError."""
    rate = args.request_rate
    if not rate > 0 or args.num_prompts < 1 or not args.burstiness > 0 or not args.divide_by > 0:
        raise ValueError(
            "--request-rate, --num-prompts, --burstiness and --divide-by must be above 0"
        )
    is_all_at_once = rate == float("inf") and args.arrivals != "trace"
    shape = Shape(
        arrivals="burst" if is_all_at_once else args.arrivals,
        num_requests=args.num_prompts,
        rate_per_s=None if rate == float("inf") else rate,
        variation=args.burstiness**-0.5,  # a gamma of this shape varies by so much
        divisor=args.divide_by,
        max_model_len=args.max_model_len,
        vocab_size=args.vocab_size,
    )
    if args.trace is not None:
        return make_traffic(shape, read_trace(args.trace), args.seed)
    lengths = (parse_lengths(args.input_len), parse_lengths(args.output_len))
    return make_traffic(shape, lengths, args.seed)


@contextlib.asynccontextmanager
async def open_target(args: argparse.Namespace) -> AsyncIterator[Target]:
    """Whom the flags name, ready. Raises TandemError or ValueError."""
    if args.base_url is None:
        options: RequestOptions = {} if args.sla_class is None else {"sla_class": args.sla_class}
        async with AsyncClient(args.gateway, keys=args.keys, key_name=args.key_name) as client:
            await client.wait_until_ready(args.wait_s)
            yield ZmqTarget(client, options)
        return
    if importlib.util.find_spec("aiohttp") is None:
        raise ValueError("load over HTTP needs aiohttp: pip install 'tandem-serve[bench]'")
    session = importlib.import_module("loadgen.http_session")
    async with session.open_http_target(
        args.base_url, args.model, args.endpoint, args.max_concurrency, args.wait_s
    ) as target:
        yield target


async def _run(args: argparse.Namespace, traffic: Sequence[Due]) -> Driven:
    async with open_target(args) as target:
        with tqdm(total=len(traffic), unit="request", disable=None) as bar:
            return await drive(
                target,
                traffic,
                max_in_flight=args.max_concurrency,
                drain_s=args.drain_s,
                on_end=bar.update,
            )


def run(args: argparse.Namespace, say: Say) -> int:
    """Exit status 1 where nothing was answered. Raises ValueError and TandemError."""
    if args.compare is not None:
        return _compare(args, say)
    targets = parse_targets(args.goodput)
    driven = asyncio.run(_run(args, make_load(args)))
    document = {
        "benchmark": "bench",
        "label": args.label,
        "settings": _settings(args),
        "machine": machine(),
        **summarise(driven, targets),
    }
    say(format_run(document))
    each = records(driven)
    if args.save is not None:
        save(args.save, document | {"requests": each})
    if args.plot is not None:
        say(plot(args.plot, [(args.label or "run", each)]))
    say(json_line(document))
    return 0 if document["num_done"] else 1


def _compare(args: argparse.Namespace, say: Say) -> int:
    runs = [load(path) for path in args.compare]
    say("\n".join(compare(*runs)))
    if args.plot is not None:
        names = [path.stem for path in args.compare]
        pairs = [(run["label"] or n, run["requests"]) for n, run in zip(names, runs, strict=True)]
        say(plot(args.plot, pairs))
    return 0


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    left_out = {"save", "plot", "compare", "label", "keys", "key_name", "wait_s"}
    settings = {name: value for name, value in vars(args).items() if name not in left_out}
    rate = None if args.request_rate == float("inf") else args.request_rate
    return settings | {"trace": args.trace and args.trace.name, "request_rate": rate}


def format_run(document: dict[str, Any]) -> str:
    """The figures for people: the steady part where there is one, else the whole run."""
    part = document.get("steady", document)
    lines = [
        f"sent {document['num_sent']}, answered {document['num_done']}, refused "
        f"{document['num_refused']}, unfinished {document['num_unfinished']}, in "
        f"{document['duration_s']:.2f} s",
        ("steady part (first and last tenth left out)" if "steady" in document else "whole run")
        + f": {part['requests_per_s']:.2f} requests/s, goodput {part['goodput_per_s']:.2f}/s "
        f"({part['attainment']:.1%} good), {part['output_tokens_per_s']:.1f} tokens/s",
        "",
        f"{'ms':<8}" + "".join(f"{name:>10}" for name in ("p50", "p90", "p99", "max")),
    ]
    for name in LATENCIES:
        if part[name]:
            cells = "".join(f"{value:>10.2f}" for value in part[name].values())
            lines.append(f"{name[:-3].upper():<8}{cells}")
    lines += [f"error {code}: {count}" for code, count in document["errors"].items()]
    return "\n".join([*lines, *document["error_texts"]])
