"""`tandem simulate`, `plan` and `bench`: start simulator or load generator as a process of its own.

All flags but the command are that program's; this side knows none of them, so that the command
line imports neither.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from tandem.child_process import child_environment

SUMMARIES = {
    "bench": "drive load at Tandem or any OpenAI-compatible server and measure it",
    "simulate": "run the production policies over a workload in virtual time",
    "plan": "find the fewest nodes that keep an SLA, and whether to disaggregate",
}
MODULES = {
    "bench": "loadgen",
    "simulate": "simulator.performance",
    "plan": "simulator.performance",
}


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommands; `--help` is answered by the programs."""
    for name, summary in SUMMARIES.items():
        commands.add_parser(name, help=summary, add_help=False, allow_abbrev=False)


def run(command: str, others: Sequence[str]) -> int:
    """Exit status of the program; Ctrl-C reaches it as well and ends it first."""
    # -P: a folder in the current directory must not shadow one of ours.
    program = [sys.executable, "-P", "-m", MODULES[command], command, *others]
    with subprocess.Popen(program, env=child_environment(os.environ, 1)) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
