"""`python -m prefill_node`: a node that starts with the prefill role only."""

import os
import runpy

if __name__ == "__main__":
    os.environ.setdefault("TANDEM_PREFILL_WEIGHT", "1")
    os.environ.setdefault("TANDEM_DECODE_WEIGHT", "0")
    runpy.run_module("node", run_name="__main__")
