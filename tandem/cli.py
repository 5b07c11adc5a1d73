"""`tandem`: start a deployment on this host, ask it for text, look at its state, change it."""

import argparse
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tandem import cli_flags, cli_operator_flags, cli_programs
from tandem.errors import TandemError

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: `module.run(args)` does it, and is imported only then.

    Without `add_flags` the module declares its parser itself.
    """

    name: str
    summary: str
    module: str
    add_flags: Callable[[argparse.ArgumentParser], None] | None = None


COMMANDS = (
    Command("up", "start coordinator, gateway and nodes on this host", "cli_up", cli_flags.add_up),
    Command("generate", "stream the answer to a prompt", "cli_generate", cli_flags.add_generate),
    Command("chat", "talk with the model in this terminal", "cli_chat", cli_flags.add_chat),
    Command(
        "status",
        "show nodes, pages, gateways and SLA classes",
        "cli_status",
        cli_operator_flags.add_status,
    ),
    Command(
        "top", "watch a deployment: SLA, nodes, requests", "cli_top", cli_operator_flags.add_top
    ),
    Command(
        "explain",
        "say where one request's time went, and why",
        "cli_explain",
        cli_operator_flags.add_explain,
    ),
    Command("keys", "make, rotate, list and remove keys", "cli_keys"),
    Command(
        "drain",
        "let a node or gateway finish what it has, then leave",
        "cli_drain",
        cli_operator_flags.add_drain,
    ),
    Command(
        "weights",
        "give a node other roles while it runs",
        "cli_weights",
        cli_operator_flags.add_weights,
    ),
    Command(
        "doctor",
        "find what keeps Tandem from running well here",
        "cli_doctor",
        cli_operator_flags.add_doctor,
    ),
    Command(
        "train-predictor",
        "learn how long answers become, from recorded lengths",
        "cli_train_predictor",
        cli_operator_flags.add_train_predictor,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(next((word for word in argv if not word.startswith("-")), ""))
    args, others = parser.parse_known_args(argv)
    args.others = others
    if args.command in cli_programs.MODULES:
        return cli_programs.run(args.command, others)
    if others and args.command != "up":
        words = " ".join(others)
        parser.error(f"unknown arguments: {words}; see tandem {args.command} --help")
    module = next(c.module for c in COMMANDS if c.name == args.command)
    try:
        status: int = importlib.import_module(f"tandem.{module}").run(args)
        return status
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


def make_parser(chosen: str) -> argparse.ArgumentParser:
    """The parser of all subcommands, with the flags of the chosen one."""
    parser = argparse.ArgumentParser(prog="tandem", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action=_ShowVersion, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        if command.name == chosen and command.add_flags is None:
            importlib.import_module(f"tandem.{command.module}").add_parser(commands)
            continue
        subparser = commands.add_parser(command.name, help=command.summary, allow_abbrev=False)
        if command.name == chosen and command.add_flags is not None:
            command.add_flags(subparser)
    cli_programs.add_parsers(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
