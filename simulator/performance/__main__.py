"""`tandem simulate`, `tandem plan`: tables on stdout, JSON as the last line, progress on stderr."""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from simulator.performance import flags

INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 done, 1 failed, 130 interrupted."""
    args = make_parser().parse_args(argv)
    try:
        # Loading these takes 0.2 s, which --help has not.
        commands = importlib.import_module("simulator.performance.commands")
        document = commands.RUN[args.command](args, _say, _tell)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ValueError as error:
        print(f"tandem {args.command}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(document, separators=(",", ":"), sort_keys=True))
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make_parser() -> argparse.ArgumentParser:
    """The parser of both commands."""
    parser = argparse.ArgumentParser(prog="tandem", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    simulated = commands.add_parser(
        "simulate",
        description="Runs the production policies over a workload in virtual time, on nodes that "
        "take the time of a hardware profile.",
        allow_abbrev=False,
    )
    flags.add_common_flags(simulated)
    flags.add_batch_policy(simulated)
    simulated.add_argument(
        "--nodes",
        default="1p1d",
        metavar="LAYOUT",
        help="2p3d: 2 prefill and 3 decode nodes; 4m: 4 mixed ones; default %(default)s",
    )
    simulated.add_argument(
        "--rate", type=float, metavar="X", help="requests per second; default: the trace's own"
    )
    simulated.add_argument(
        "--chunk-tokens", type=int, metavar="N", help="tokens of a step; default: the profile's"
    )
    simulated.add_argument(
        "--num-seeds", type=int, default=1, metavar="N", help="runs, for confidence intervals"
    )
    simulated.add_argument(
        "--every-step",
        action="store_true",
        help="plan every single step; same results, for checking the simulator",
    )
    flags.add_coordinator_flags(simulated)
    _add_plan(commands)
    return parser


def _add_plan(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    planned = commands.add_parser(
        "plan",
        description="Finds how many nodes of which role keep the SLA at a rate, which chunk size "
        "and batch policy, and whether to disaggregate at all.",
        allow_abbrev=False,
    )
    flags.add_common_flags(planned)
    planned.add_argument("--rate", type=float, required=True, metavar="X", help="requests/s")
    planned.add_argument(
        "--max-nodes", type=int, default=32, metavar="N", help="default %(default)s"
    )
    planned.add_argument(
        "--batch-policies",
        nargs="+",
        default=["fifo"],
        metavar="NAME",
        help="to choose from; default %(default)s",
    )
    planned.add_argument(
        "--chunk-tokens",
        type=int,
        nargs="+",
        default=[512, 1024, 2048],
        metavar="N",
        help="sizes to choose from, for both kinds of deployment; default %(default)s",
    )
    planned.add_argument(
        "--num-seeds", type=int, default=3, metavar="N", help="of the comparison; default 3"
    )
    planned.add_argument("--plots", type=Path, metavar="FOLDER", help="also draw PNG files")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
