"""`scripts/bench gpu_all`, or one part of it; see `command.py`."""

import sys

from benchmarks.gpu_all.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
