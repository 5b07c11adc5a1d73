"""`scripts/bench handoff [NAME]` measures what a hand-off costs; without a name, all of it."""

import sys

from benchmarks.handoff.catalogue import ALL, PARTS
from benchmarks.run import run_benchmark

if __name__ == "__main__":
    given = sys.argv[1:]
    names = given if given and not given[0].startswith("-") else [ALL, *given]
    sys.exit(run_benchmark("handoff", __doc__, PARTS, names))
