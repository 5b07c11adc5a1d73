"""`tandem`: start a deployment on this host, ask it for text, look at its state, change it."""

import argparse
import asyncio
import importlib.metadata
import os
import sys
from collections.abc import Sequence

import msgspec

from tandem import (
    cli_drain,
    cli_generate,
    cli_keys,
    cli_simulate,
    cli_train_predictor,
    cli_up,
    cli_weights,
)
from tandem.errors import TandemError
from tandem.status import DEFAULT_COORDINATOR, query_status, render_status

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    parser = make_parser()
    args, others = parser.parse_known_args(argv)
    if args.command in cli_simulate.COMMANDS:
        return cli_simulate.run(args.command, others)
    if others and args.command != "up":
        parser.error(f"unknown arguments: {' '.join(others)}; see tandem {args.command} --help")
    try:
        match args.command:
            case "up":
                return cli_up.run(args, others)
            case "generate":
                return cli_generate.run(args)
            case "keys":
                return cli_keys.run(args)
            case "drain":
                return cli_drain.run(args)
            case "train-predictor":
                return cli_train_predictor.run(args)
            case "weights":
                return cli_weights.run(args)
        return show_status(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (TandemError, ValueError) as error:
        print(f"tandem {args.command}: {error}", file=sys.stderr)
        return 1


class _ShowVersion(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        try:
            version = importlib.metadata.version("tandem-serve")
        except importlib.metadata.PackageNotFoundError:
            version = "not installed; running from a checkout (scripts/setup installs it)"
        print(f"tandem {version}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="tandem", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action=_ShowVersion, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    cli_up.add_parser(commands)
    cli_generate.add_parser(commands)
    status = commands.add_parser(
        "status",
        help="show nodes, pages, gateways and SLA classes",
        description="Asks the coordinator for the state of everything.",
        allow_abbrev=False,
    )
    status.add_argument(
        "--coordinator",
        metavar="ADDRESS",
        default=os.environ.get("TANDEM_COORDINATOR") or DEFAULT_COORDINATOR,
        help="[TANDEM_COORDINATOR; default %(default)s]",
    )
    status.add_argument("--json", action="store_true", help="print one JSON object")
    cli_keys.add_flags(status)
    cli_keys.add_parser(commands)
    cli_drain.add_parser(commands)
    cli_train_predictor.add_parser(commands)
    cli_weights.add_parser(commands)
    cli_simulate.add_parsers(commands)
    return parser


def show_status(args: argparse.Namespace) -> int:
    """`tandem status`."""
    status = asyncio.run(query_status(args.coordinator, cli_keys.keyring(args, "operator")))
    print(msgspec.json.encode(status).decode() if args.json else render_status(status))
    return 0


if __name__ == "__main__":
    sys.exit(main())
