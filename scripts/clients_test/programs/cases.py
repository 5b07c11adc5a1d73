"""Runs a program's cases and says how each went, as one line of JSON at the end.

Stands alone: the environments of the clients have nothing of ours.
"""

import json
import sys
import traceback
from collections.abc import Callable, Sequence

Case = Callable[[str], None]  # gets the gateway's address


def run(cases: Sequence[Case]) -> None:
    """Each case by its function's name; one that raises has failed."""
    gateway = sys.argv[1]
    results: list[tuple[str, str | None]] = []
    for case in cases:
        try:
            case(gateway)
        except Exception as error:  # noqa: BLE001  whatever a client raises
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}".replace("\n", " ")
            results.append((case.__name__, text[:300] or "failed"))
        else:
            results.append((case.__name__, None))
    print(json.dumps(results))
