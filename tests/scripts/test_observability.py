"""Boards, rules and docs/metrics.md are what the table says; tests/e2e has the scrapes."""

import importlib
import json
import re
from pathlib import Path

import pytest

from scripts.observability import rules
from scripts.observability.files import generated

ROOT = Path(__file__).resolve().parents[2]
BOARDS = [name for name in generated() if name.endswith(".json")]


def all_rules() -> list[dict]:
    yaml = importlib.import_module("yaml")
    text = generated()["deploy/prometheus/rules.yaml"]
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("name", generated())
def test_generated_files_are_up_to_date(name: str) -> None:
    assert (ROOT / name).read_text() == generated()[name], "run scripts/make_grafana"


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    headings = re.findall(r"^### (Tandem\w+)$", (ROOT / "docs/operations.md").read_text(), re.M)
    alerts = [rule for rule in all_rules() if "alert" in rule]
    assert [alert["alert"] for alert in alerts] == headings
    for alert in alerts:
        assert alert["labels"]["severity"] in ("page", "ticket")
        notes = alert["annotations"]
        assert notes["summary"] and notes["description"]
        assert notes["runbook"] == f"docs/operations.md#{alert['alert'].lower()}"


def test_burn_rates_look_at_both_windows_and_at_enough_requests() -> None:
    alerts = {rule["alert"]: rule["expr"] for rule in all_rules() if "alert" in rule}
    for burn in rules.BURNS:
        for window in (burn.long, burn.short):
            limit = f"{rules.missed(window)} > clamp_max({burn.factor:g} * {rules.BUDGET}"
            assert limit in alerts[burn.name]
        assert f">= {rules.MIN_MISSES}" in alerts[burn.name]


@pytest.mark.parametrize("name", BOARDS)
def test_boards_lay_their_panels_out(name: str) -> None:
    board = json.loads(generated()[name])
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["description"].endswith(".")
