"""Flags of the commands that look at a deployment and change it, without what runs them."""

import argparse
import math
import os
from pathlib import Path

from tandem.addresses import DEFAULT_COORDINATOR, DEFAULT_DASHBOARD
from tandem.cli_flags import add_key_flags

OPERATOR_KEY_VARIABLE = "TANDEM_OPERATOR_KEY"


def add_status(parser: argparse.ArgumentParser) -> None:
    """`tandem status`."""
    parser.description = "Asks the coordinator for the state of everything."
    _add_coordinator(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_key_flags(parser)


def add_top(parser: argparse.ArgumentParser) -> None:
    """`tandem top`."""
    parser.description = (
        "Shows the dashboard in this terminal, once per second: how the SLA is kept and what "
        "limits it, the balance of roles, nodes, rates, live requests, events. q quits."
    )
    _add_dashboard(parser)
    parser.add_argument("--once", action="store_true", help="print it once, as plain text")
    parser.add_argument(
        "--json", action="store_true", help="with --once: print the snapshot as one JSON object"
    )


def add_explain(parser: argparse.ArgumentParser) -> None:
    """`tandem explain`."""
    parser.description = (
        "Says of one request, ended or live, where its time went, what limited it, which "
        "decisions were taken about it and why."
    )
    parser.add_argument(
        "request_id", metavar="REQUEST_ID", help="hex; the first 8 digits or more are enough"
    )
    _add_dashboard(parser)
    parser.add_argument("--json", action="store_true", help="print the record as one JSON object")


def add_drain(parser: argparse.ArgumentParser) -> None:
    """`tandem drain`."""
    parser.description = (
        "Nothing new is placed on the member; what a decode node still runs moves to others. The "
        "process ends by itself, with exit status 0."
    )
    parser.add_argument("name", metavar="NAME", help="as `tandem status` shows it")
    parser.add_argument("--force", action="store_true", help="also where it is the last of a role")
    parser.add_argument("--wait", action="store_true", help="return when it has left")
    _add_coordinator(parser)
    add_key_flags(parser)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """`tandem weights`."""
    parser.description = (
        "Weights are shares of the node; 0 closes a role: the node takes no new work of it, what "
        "it has goes on or moves. The balancer leaves the node alone for a while."
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
    _add_coordinator(parser)
    add_key_flags(parser)


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """`tandem doctor`."""
    parser.description = (
        "Looks for what keeps Tandem from running well: versions, device, shared memory, limits, "
        "and how fast KV pages move here. With --coordinator it looks at a running deployment as "
        "well: every address from here, every link between two nodes, the path it takes and why."
    )
    parser.add_argument(
        "--coordinator",
        metavar="ADDRESS",
        default=os.environ.get("TANDEM_COORDINATOR"),
        help="of a running deployment [TANDEM_COORDINATOR; default: this host alone]",
    )
    parser.add_argument(
        "--gateway",
        metavar="ADDRESS",
        help="ask a gateway for a few short answers first: nodes measure the way between them when "
        "they meet",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_key_flags(parser)


def add_train_predictor(parser: argparse.ArgumentParser) -> None:
    """`tandem train-predictor`."""
    parser.description = (
        "Trains on what gateways recorded with --record-dir, holds the newest fifth back and "
        "prints how good predictions of it are; the last line is JSON. Give the file to gateways "
        "with --length-predictor."
    )
    parser.add_argument("records", metavar="RECORDS", help="a folder of records, or one file")
    parser.add_argument("--out", metavar="FILE", required=True, help="where to write the model")


def share(text: str) -> float:
    """A weight from the command line; argparse words the errors."""
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is no share: give a number from 0 on")
    return value


def _add_coordinator(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--coordinator",
        metavar="ADDRESS",
        default=os.environ.get("TANDEM_COORDINATOR") or DEFAULT_COORDINATOR,
        help="[TANDEM_COORDINATOR; default %(default)s]",
    )


def _add_dashboard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dashboard",
        metavar="URL",
        default=os.environ.get("TANDEM_DASHBOARD") or DEFAULT_DASHBOARD,
        help="of the coordinator's dashboard [TANDEM_DASHBOARD; default %(default)s]",
    )
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help="file with an operator's bearer key (tandem keys bearer), where the deployment has "
        f"keys [{OPERATOR_KEY_VARIABLE}: the key itself]",
    )
