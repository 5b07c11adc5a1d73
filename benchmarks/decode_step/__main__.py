"""`scripts/bench decode_step NAME` says where the time of a node's step goes."""

import sys

from benchmarks.decode_step.catalogue import STEPS
from benchmarks.run import run_benchmark

if __name__ == "__main__":
    sys.exit(run_benchmark("decode_step", __doc__, STEPS, sys.argv[1:]))
