"""The flags of `tandem bench`, apart from what they start, which takes 0.2 s to load."""

import argparse
import os
from pathlib import Path

from loadgen.lengths import FORMS

ABOUT = """Load for Tandem over ZeroMQ or for any OpenAI-compatible server, measured.

The flags that users of other load generators know have their names."""
EPILOG = """\
examples:
  tandem bench --request-rate 4 --num-prompts 200 --goodput ttft:500 tpot:50
  tandem bench --base-url http://127.0.0.1:8000 --trace conversation.jsonl --arrivals trace
  tandem bench --arrivals gamma --burstiness 0.25 --request-rate 8 --save a.json
  tandem bench --compare a.json b.json --plot both.png
"""


def make_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        prog="tandem bench",
        description=ABOUT,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_target(parser.add_argument_group("where to"))
    _add_load(parser.add_argument_group("what and when"))
    result = parser.add_argument_group("result")
    result.add_argument(
        "--goodput",
        nargs="+",
        default=[],
        metavar="NAME:MS",
        help="what counts as good: ttft:500 tpot:50 e2el:5000; without it whatever is answered",
    )
    result.add_argument("--save", type=Path, metavar="FILE", help="all requests, as JSON")
    result.add_argument("--plot", type=Path, metavar="FILE", help="latencies as PNG")
    result.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="two saved runs; sends nothing"
    )
    result.add_argument("--label", default="", help="kept in the saved run")
    return parser


def _add_target(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--gateway",
        metavar="ADDRESS",
        default=os.environ.get("TANDEM_GATEWAY", "tcp://127.0.0.1:7301"),
        help="over ZeroMQ [TANDEM_GATEWAY; default %(default)s]",
    )
    group.add_argument("--keys", metavar="FOLDER", help="keys folder, for ZeroMQ")
    group.add_argument("--key-name", metavar="NAME", help="client key in it")
    group.add_argument("--base-url", metavar="URL", help="over HTTP instead: http://host:port")
    group.add_argument("--endpoint", choices=("completions", "chat"), default="completions")
    group.add_argument("--model", help="name for HTTP; default: the first of /v1/models")
    group.add_argument("--sla-class", help="of all requests, over ZeroMQ")
    group.add_argument(
        "--wait-s", type=float, default=30.0, metavar="S", help="for the server to be ready"
    )


def _add_load(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--num-prompts", type=int, default=128, metavar="N")
    group.add_argument(
        "--request-rate", type=float, default=float("inf"), metavar="R", help="per second; inf: all"
    )
    group.add_argument(
        "--arrivals",
        choices=("poisson", "gamma", "constant", "trace", "burst"),
        default="poisson",
        help="trace: at the trace's own times, stretched to --request-rate where that is given",
    )
    group.add_argument(
        "--burstiness",
        type=float,
        default=1.0,
        metavar="SHAPE",
        help="of gamma arrivals: 1 is Poisson, below 1 comes in bursts",
    )
    group.add_argument(
        "--max-concurrency", type=int, metavar="N", help="requests in flight at most"
    )
    group.add_argument("--input-len", default="128", metavar="LENGTHS", help=FORMS)
    group.add_argument("--output-len", default="64", metavar="LENGTHS", help="the same forms")
    group.add_argument(
        "--trace", type=Path, metavar="FILE", help="lengths (and times) of a Mooncake or Azure "
        "trace, or a CSV of lengths",
    )  # fmt: skip
    group.add_argument(
        "--divide-by", type=float, default=1.0, metavar="X", help="lengths, for small models"
    )
    group.add_argument("--max-model-len", type=int, metavar="N", help="clips lengths to fit")
    group.add_argument(
        "--vocab-size", type=int, default=4096, metavar="N", help="prompts are random ids below it"
    )
    group.add_argument("--seed", type=int, default=0)
    group.add_argument(
        "--drain-s", type=float, default=60.0, metavar="S", help="wait for the last answers"
    )
