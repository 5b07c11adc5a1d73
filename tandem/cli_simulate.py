"""`tandem simulate` and `tandem plan`: start the performance simulator as a process of its own.

All flags but the command are the simulator's; this side knows none of them, so that the command
line imports no simulator.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from tandem.child_process import child_environment

MODULE = "simulator.performance"
COMMANDS = {
    "simulate": "run the production policies over a workload in virtual time",
    "plan": "find the fewest nodes that keep an SLA, and whether to disaggregate",
}


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare both subcommands; `--help` is answered by the simulator as well."""
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False, allow_abbrev=False)


def run(command: str, others: Sequence[str]) -> int:
    """Exit status of the simulator; Ctrl-C reaches it as well and ends it first."""
    # -P: a folder in the current directory must not shadow one of ours.
    program = [sys.executable, "-P", "-m", MODULE, command, *others]
    with subprocess.Popen(program, env=child_environment(os.environ, 1)) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
