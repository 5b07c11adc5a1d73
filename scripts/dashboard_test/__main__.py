"""Drives the dashboard in headless Chromium, and saves what it looks like.

scripts/test_dashboard                 a real deployment under load, then made-up states
scripts/test_dashboard --only made-up  the made-up ones alone (half a minute)
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from scripts.dashboard_test.browser import HOW_TO_INSTALL
from scripts.dashboard_test.checks import Report
from scripts.dashboard_test.deployment import try_deployment
from scripts.dashboard_test.made_up import try_key, try_states


def main() -> int:
    """0 where everything held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the screenshots; a new one without")
    parser.add_argument("--only", choices=("deployment", "made-up"))
    parser.add_argument("--load-s", type=float, default=60.0, help="seconds under load first")
    parser.add_argument("--rate", type=float, default=8.0, help="requests per second")
    flags = parser.parse_args()
    if None in (shutil.which("chromedriver"), shutil.which("chromium")):
        print(f"scripts/test_dashboard {HOW_TO_INSTALL}", file=sys.stderr)
        return 2
    out = flags.out or Path(tempfile.mkdtemp(prefix="tandem-dashboard-"))
    out.mkdir(parents=True, exist_ok=True)
    report = Report(out)
    if flags.only != "made-up":
        try_deployment(report, load_s=flags.load_s, rate=flags.rate)
    if flags.only != "deployment":
        try_states(report)
        try_key(report)
    print(f"screenshots in {out}")
    if report.failures:
        print(f"test_dashboard FAILED: {len(report.failures)} of its checks")
        return 1
    print("test_dashboard ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
