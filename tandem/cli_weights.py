"""`tandem weights`: give a node other roles while it runs."""

import argparse
import asyncio
import math
import os
import sys

from tandem.cli_keys import add_flags, keyring
from tandem.messages.membership import RoleWeights, SetWeights, WeightsAnswer
from tandem.operator_orders import ask
from tandem.status import DEFAULT_COORDINATOR


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "weights",
        help="give a node other roles while it runs",
        description="Weights are shares of the node; 0 closes a role: the node takes no new work "
        "of it, what it has goes on or moves. The balancer leaves the node alone for a while.",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NODE", help="as `tandem status` shows it")
    for role in ("prefill", "decode"):
        parser.add_argument(
            f"--{role}", type=share, required=True, metavar="X", help=f"share of {role}"
        )
    parser.add_argument(
        "--force",
        action="store_true",
        help="also where only a slow node, or one that turns to it, is left for a role",
    )
    parser.add_argument(
        "--coordinator",
        metavar="ADDRESS",
        default=os.environ.get("TANDEM_COORDINATOR") or DEFAULT_COORDINATOR,
        help="[TANDEM_COORDINATOR; default %(default)s]",
    )
    add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status: 0 where the node will have them, 1 where not. Raises UnavailableError."""
    order = SetWeights(
        name=args.name,
        weights=RoleWeights(prefill=args.prefill, decode=args.decode),
        force=args.force,
    )
    answer = asyncio.run(ask(args.coordinator, order, WeightsAnswer, keyring(args, "operator")))
    if not answer.accepted:
        print(f"tandem weights: {answer.message}", file=sys.stderr)
        return 1
    print(answer.message)
    return 0


def share(text: str) -> float:
    """A weight from the command line; argparse words the errors."""
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is no share: give a number from 0 on")
    return value
