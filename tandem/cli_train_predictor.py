"""`tandem train-predictor`: a model of answer lengths from what gateways recorded."""

import argparse
import subprocess
import sys


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "train-predictor",
        help="learn how long answers become, from recorded lengths",
        description="Trains on what gateways recorded with --record-dir, holds the newest fifth "
        "back and prints how good predictions of it are; the last line is JSON. Give the file to "
        "gateways with --length-predictor.",
        allow_abbrev=False,
    )
    parser.add_argument("records", metavar="RECORDS", help="a folder of records, or one file")
    parser.add_argument("--out", metavar="FILE", required=True, help="where to write the model")


def run(args: argparse.Namespace) -> int:
    """Exit status: 0 done, 1 where the records do not allow it."""
    # -P: a folder in the current directory must not shadow one of ours.
    command = [sys.executable, "-P", "-m", "gateway.training", args.records, "--out", args.out]
    return subprocess.run(command, check=False).returncode
