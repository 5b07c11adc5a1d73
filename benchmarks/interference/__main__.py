"""`scripts/bench interference`: time between tokens while long prompts arrive; JSON comes last."""

import sys

from benchmarks.interference import layouts
from benchmarks.run import run_benchmark

if __name__ == "__main__":
    sys.exit(run_benchmark("interference", __doc__, {"itl": layouts.run}, ["itl", *sys.argv[1:]]))
