"""Runs the attacks one after the other and says what each did."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine

from loadgen.report import json_line
from scripts.attacks_test import crowd, overload, timing
from scripts.attacks_test.outcome import Outcome
from tandem.tables import format_table

ATTACKS: dict[str, Callable[[bool], Coroutine[None, None, Outcome]]] = {
    "crowd": crowd.attack,
    "overload": overload.attack,
    "timing": timing.attack,
}


def main() -> int:
    """Exit status 1 where one had an effect."""
    parser = argparse.ArgumentParser(prog="scripts/test_attacks", description=__doc__)
    parser.add_argument("--only", choices=list(ATTACKS))
    parser.add_argument("--quick", action="store_true", help="small: does it run")
    args = parser.parse_args()
    outcomes = []
    for name, attack in ATTACKS.items():
        if args.only in (None, name):
            print(f"{name}: running", file=sys.stderr, flush=True)
            outcomes.append((name, asyncio.run(attack(args.quick))))
    rows = [
        [name, "held" if not o.faults else "BROKEN", what, value]
        for name, o in outcomes
        for what, value in o.rows
    ]
    print("\n".join(format_table(("attack", "", "what", "measured"), rows)))
    for name, outcome in outcomes:
        for fault in outcome.faults:
            print(f"{name}: {fault}")
    document = {name: {"faults": o.faults, **dict(o.rows)} for name, o in outcomes}
    print(json_line(document))
    return 1 if any(outcome.faults for _, outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
