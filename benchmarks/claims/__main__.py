"""`scripts/bench claims NAME` measures one claim of docs/claims.md; the last line is JSON."""

import sys
from dataclasses import asdict

from benchmarks.claims.catalogue import CLAIMS
from benchmarks.options import parse_options
from benchmarks.report import publish
from tandem.errors import TandemError
from tandem.launch import ClusterError


def main() -> int:
    """Exit status 1 where something could not be measured."""
    name, options = parse_options("scripts/bench claims", __doc__, list(CLAIMS), sys.argv[1:])
    try:
        settings = asdict(options) | {"traces": options.traces is not None}
        publish(f"claims {name}", lambda: CLAIMS[name](options), settings)
    except (ValueError, TimeoutError, TandemError, ClusterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
