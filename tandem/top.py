"""Draws a dashboard's snapshot in a terminal; rich is loaded with this module only."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tandem.log_lines import printable
from tandem.messages.operations import Event, Snapshot
from tandem.top_rows import (
    CLASS_HEADER,
    LIVE_HEADER,
    NODE_HEADER,
    balance_line,
    class_row,
    event_line,
    headline,
    last_decision,
    live_row,
    node_row,
    rates_line,
)

STYLES = {
    "ok": "green",
    "at risk": "yellow",
    "violated": "bold red",
    "slow": "yellow",
    "draining": "cyan",
    "down": "bold red",
    "no traffic": "dim",
}
EVENT_STYLES = {"decision": "cyan", "error": "red", "order": "magenta"}
NUM_FIXED_LINES = 15  # headlines, table heads and the lines between
MAX_ROWS = 100


def draw(
    snapshot: Snapshot, events: Sequence[Event], *, height: int | None = None, problem: str = ""
) -> RenderableType:
    """Everything on one page; with a `height` the lists at the end are cut to what fits.

    `problem` is why there is nothing newer.
    """
    num_rows = MAX_ROWS
    if height is not None:
        num_told = sum(verdict.verdict != "ok" for verdict in snapshot.classes)
        num_above = NUM_FIXED_LINES + len(snapshot.classes) + num_told + len(snapshot.nodes)
        num_rows = max(2, (height - num_above) // 2)
    decision = last_decision(events)
    parts: list[RenderableType] = [
        Text(headline(snapshot), style="bold"),
        *([Text(problem, style="bold red")] if problem else []),
        _classes(snapshot),
        *_explanations(snapshot),
        Text(balance_line(snapshot)),
        *([Text(decision, style="cyan")] if decision else []),
        Text(rates_line(snapshot)),
        Text(""),
        _nodes(snapshot),
        *_gateways(snapshot),
        Text(""),
        _live(snapshot, num_rows),
        Text(""),
        *(_event(event) for event in list(events)[-num_rows:]),
    ]
    return Group(*parts)


def _classes(snapshot: Snapshot) -> Table:
    table = _table(CLASS_HEADER)
    for verdict in snapshot.classes:
        _add(table, class_row(verdict), styled=1)
    return table


def _explanations(snapshot: Snapshot) -> list[Text]:
    return [
        Text(f"{v.sla_class}: {printable(v.explanation)}", style=STYLES.get(v.verdict, ""))
        for v in snapshot.classes
        if v.verdict not in ("ok", "no traffic")
    ]


def _nodes(snapshot: Snapshot) -> Table:
    table = _table(NODE_HEADER)
    for node in snapshot.nodes:
        _add(table, node_row(node), styled=2)
    return table


def _gateways(snapshot: Snapshot) -> list[Text]:
    words = [
        f"{g.gateway_id} {g.state}, {g.num_live_requests} live requests" for g in snapshot.gateways
    ]
    return [Text(f"gateways: {printable('; '.join(words))}")] if words else []


def _live(snapshot: Snapshot, num_rows: int) -> Table:
    table = _table(LIVE_HEADER)
    for live in snapshot.live[:num_rows]:
        _add(table, live_row(live))
    return table


def _event(event: Event) -> Text:
    line = Text(event_line(event), style=EVENT_STYLES.get(event.kind, "dim"))
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _table(header: Sequence[str]) -> Table:
    """Columns that shrink rather than wrap; the first is aligned left, the others right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    return table


def _add(table: Table, row: Sequence[str], styled: int | None = None) -> None:
    table.add_row(
        *(
            Text(text, style=STYLES.get(text, "") if index == styled else "")
            for index, text in enumerate(row)
        )
    )
