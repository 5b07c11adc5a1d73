"""`scripts/bench claims NAME` measures one claim of docs/claims.md; the last line is JSON."""

import sys

from benchmarks.claims.catalogue import CLAIMS
from benchmarks.run import run_benchmark

if __name__ == "__main__":
    sys.exit(run_benchmark("claims", __doc__, CLAIMS, sys.argv[1:]))
