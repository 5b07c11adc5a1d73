"""`scripts/bench kernels NAME` times kernels beside torch's and beside the machine's limits."""

import sys

from benchmarks.kernels.catalogue import KERNELS
from benchmarks.run import run_benchmark

if __name__ == "__main__":
    sys.exit(run_benchmark("kernels", __doc__, KERNELS, sys.argv[1:]))
