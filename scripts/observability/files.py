"""Everything that is generated, by its path in the repository."""

import json

from scripts.observability import boards, document, overview, rules


def generated() -> dict[str, str]:
    """Path -> text."""
    found = {
        f"deploy/grafana/{board['uid']}.json": json.dumps(board, indent=1) + "\n"
        for board in (overview.overview(), boards.nodes(), boards.transfers())
    }
    found["deploy/prometheus/rules.yaml"] = rules.render()
    found["docs/metrics.md"] = document.render()
    return found
