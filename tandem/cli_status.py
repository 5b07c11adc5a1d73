"""`tandem status`: the coordinator's state, as tables or JSON."""

import argparse
import asyncio

import msgspec

from tandem.cli_keys import keyring
from tandem.status import query_status, render_status


def run(args: argparse.Namespace) -> int:
    """Exit status 0. Raises UnavailableError where no coordinator answers."""
    status = asyncio.run(query_status(args.coordinator, keyring(args, "operator")))
    print(msgspec.json.encode(status).decode() if args.json else render_status(status))
    return 0
