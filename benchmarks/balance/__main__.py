"""`scripts/bench balance NAME` measures the balancer: on a running system, and simulated."""

import sys

from benchmarks.balance import simulated, step_change
from benchmarks.run import run_benchmark

if __name__ == "__main__":
    benchmarks = {"step_change": step_change.run, "step_change_simulated": simulated.run}
    sys.exit(run_benchmark("balance", __doc__, benchmarks, sys.argv[1:]))
