"""`scripts/bench balance NAME` measures the balancer on a running system."""

import sys

from benchmarks.balance import step_change
from benchmarks.run import run_benchmark

if __name__ == "__main__":
    sys.exit(run_benchmark("balance", __doc__, {"step_change": step_change.run}, sys.argv[1:]))
