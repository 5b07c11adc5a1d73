"""`scripts/bench compare NAME` puts policies, or simulator and system, beside each other."""

import sys

from benchmarks.compare.catalogue import COMPARISONS
from benchmarks.run import run_benchmark

if __name__ == "__main__":
    sys.exit(run_benchmark("compare", __doc__, COMPARISONS, sys.argv[1:]))
