"""Grafana's JSON: panels, rows, variables, boards. Grafana 10 and later read it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24  # of a board
ROW_HEIGHT = 8
STAT_HEIGHT = 5
FULL = ((None, "green"), (0.8, "orange"), (0.95, "red"))  # of a share of something bounded
QUANTILES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """One line of a chart; `legend` may name labels as `{{label}}`."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart. `text` says what to read from it; `steps` are (from, colour)."""

    title: str
    queries: tuple[Query, ...]
    unit: str
    text: str
    kind: Literal["timeseries", "stat", "heatmap", "table"] = "timeseries"
    is_stacked: bool = False
    steps: tuple[tuple[float | None, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """Panels beside each other under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of a board: all values that a label has."""

    name: str
    query: str
    label: str


def board(
    uid: str, title: str, text: str, rows: Sequence[Row], variables: Sequence[Variable]
) -> Json:
    """A whole board."""
    return {
        "uid": uid,
        "title": title,
        "description": text,
        "tags": ["tandem"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [_links()],
        "templating": {"list": [_datasource(), *map(_variable, variables)]},
        "annotations": {"list": []},
        "panels": _layout(rows),
    }


def _layout(rows: Sequence[Row]) -> list[Json]:
    found: list[Json] = []
    y = 0
    for row in rows:
        found.append(
            {
                "id": len(found) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y},
                "panels": [],
            }
        )
        y += 1
        is_low = all(panel.kind == "stat" for panel in row.panels)
        height = STAT_HEIGHT if is_low else ROW_HEIGHT
        width = WIDTH // len(row.panels)
        for column, panel in enumerate(row.panels):
            place = {"h": height, "w": width, "x": column * width, "y": y}
            found.append(_panel(panel, len(found) + 1, place))
        y += height
    return found


def _panel(panel: Panel, number: int, place: Json) -> Json:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
        "targets": [_target(panel, at, query) for at, query in enumerate(panel.queries)],
    }


def _target(panel: Panel, at: int, query: Query) -> Json:
    target: Json = {
        "refId": chr(ord("A") + at),
        "datasource": DATASOURCE,
        "expr": query.expression,
        "legendFormat": query.legend or "__auto",
    }
    if panel.kind == "heatmap":
        target["format"] = "heatmap"
    if panel.kind in ("stat", "table"):
        target["instant"] = True
    if panel.kind == "table":
        target["format"] = "table"
    return target


def _defaults(panel: Panel) -> Json:
    defaults: Json = {"unit": panel.unit, "min": 0}
    if panel.steps:
        steps = [{"value": value, "color": colour} for value, colour in panel.steps]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
        defaults["color"] = {"mode": "thresholds"}
    if panel.kind == "stat":
        del defaults["min"]  # a budget may be overspent
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 40 if panel.is_stacked else 8,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.is_stacked else "none", "group": "A"},
        }
        if panel.steps:
            defaults["custom"]["thresholdsStyle"] = {"mode": "line"}
            defaults["color"] = {"mode": "palette-classic"}
    return defaults


def _options(panel: Panel) -> Json:
    match panel.kind:
        case "timeseries":
            legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
            return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
        case "stat":
            calculation = {"calcs": ["lastNotNull"], "fields": "", "values": False}
            return {"reduceOptions": calculation, "colorMode": "background", "graphMode": "area"}
        case "heatmap":
            return {"calculate": False, "yAxis": {"unit": panel.unit}, "cellGap": 1}
        case "table":
            return {"showHeader": True}


def _datasource() -> Json:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
    }


def _variable(variable: Variable) -> Json:
    return {
        "name": variable.name,
        "label": variable.label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": variable.query, "refId": "variable"},
        "definition": variable.query,
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    }


def _links() -> Json:
    return {
        "title": "Tandem",
        "type": "dashboards",
        "tags": ["tandem"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
    }
