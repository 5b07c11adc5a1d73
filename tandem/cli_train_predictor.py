"""`tandem train-predictor`: a model of answer lengths from what gateways recorded."""

import argparse
import subprocess
import sys


def run(args: argparse.Namespace) -> int:
    """Exit status: 0 done, 1 where the records do not allow it."""
    # -P: a folder in the current directory must not shadow one of ours.
    command = [sys.executable, "-P", "-m", "gateway.training", args.records, "--out", args.out]
    return subprocess.run(command, check=False).returncode
