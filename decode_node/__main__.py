"""`python -m decode_node`: a node that starts with the decode role only."""

import os
import runpy

if __name__ == "__main__":
    os.environ.setdefault("TANDEM_PREFILL_WEIGHT", "0")
    os.environ.setdefault("TANDEM_DECODE_WEIGHT", "1")
    runpy.run_module("node", run_name="__main__")
