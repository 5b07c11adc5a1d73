"""`tandem explain`: one request's time, limits and decisions, from the coordinator's records."""

import argparse

import msgspec

from tandem.dashboard_client import connect
from tandem.explain import render_record


def run(args: argparse.Namespace) -> int:
    """Exit status 0. Raises UnavailableError without a dashboard, ValueError for an unknown id."""
    record = connect(args).record(args.request_id)
    print(msgspec.json.encode(record).decode() if args.json else render_record(record))
    return 0
