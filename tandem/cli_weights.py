"""`tandem weights`: give a node other roles while it runs."""

import argparse
import asyncio
import sys

from tandem.cli_keys import keyring
from tandem.messages.membership import RoleWeights, SetWeights, WeightsAnswer
from tandem.operator_orders import ask


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
