"""`tandem top` and `explain`: what they show of a dashboard, against a scripted one."""

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from tandem.cli import main
from tandem.cli_top import Feed
from tandem.dashboard_client import Dashboard, event_data, read_key
from tandem.errors import UnavailableError
from tandem.explain import explain_limit, render_record
from tandem.messages.common import Timeline
from tandem.messages.membership import PageCounts, RoleWeights
from tandem.messages.operations import (
    Balance,
    ClassVerdict,
    Event,
    GatewayView,
    LiveView,
    NodeView,
    Quantiles,
    Rates,
    RequestRecord,
    Snapshot,
    StageTimes,
    Step,
    WindowVerdict,
)
from tandem.top import draw
from tandem.top_rows import page_bar

ROOT = Path(__file__).resolve().parents[2]
PAGES = PageCounts(
    free=50, granted=0, filling=5, ready=0, active=15, cached=30, draining=0, quarantined=0
)
WINDOW = WindowVerdict(
    num_ended=10, num_attained=9, num_failed=0, num_shed=1, attainment=0.9, burn_rate=10.0
)
STAGES = StageTimes(
    queue=None, prefill=None, transfer=None, decode_admission=None,
    ttft=Quantiles(p50=120.0, p95=300.0, p99=450.0), tpot=None, max_itl=None,
)  # fmt: skip
NODE = NodeView(
    node_id="prefill-0", role="prefill", state="ok", weights=RoleWeights(prefill=1, decode=0),
    device="cpu", epoch=1, heartbeat_age_s=0.2, num_pages=100, pages=PAGES, useful_share=0.9,
    last_page_waste=0.1, busy_share=0.75, num_prefill_waiting=3, num_prefill_tokens_waiting=900,
    num_decode_running=0, num_decode_waiting=0, num_transfers=1, tokens_per_s=123.0,
    transfer_bytes_per_s=2e6, num_transfers_done=5, num_transfers_failed=2, num_preempted=0,
    costs=None,
)  # fmt: skip


def snapshot(**changes: Any) -> Snapshot:
    whole = Snapshot(
        version=1, unix_s=1000.0, coordinator_incarnation=1, uptime_s=3725.0, model="demo",
        max_model_len=4096,
        classes=(
            ClassVerdict(
                sla_class="interactive", ttft_ms=500, tpot_ms=50, attainment=0.99,
                verdict="violated", explanation="TTFT: prompts queue for 300 ms",
                limiting_stage="queue", budget_left=-0.5,
                windows={"5m": WINDOW, "1h": WINDOW, "3d": WINDOW}, stages=STAGES,
            ),
        ),
        balance=Balance(
            mode="observe", num_prefill=1, num_decode=2, num_mixed=0,
            explanation="prefill is the tighter role", cooldown_s=12.0,
        ),
        rates=Rates(
            requests=4.0, goodput=3.6, output_tokens=250.0, input_tokens=900.0, shed=0.4, failed=0.0
        ),
        nodes=(NODE,),
        gateways=(
            GatewayView(gateway_id="gateway", state="ok", num_live_requests=2, heartbeat_age_s=0.5),
        ),
        live=(
            LiveView(
                request_id="ab" * 16, gateway_id="gateway", tenant="default",
                sla_class="interactive", age_s=1.5, attempt=1, num_prompt_tokens=77,
                prefill_node="prefill-0", decode_node=None,
            ),
        ),
        num_live=1, num_queued=1,
        events=(
            Event(number=1, unix_s=999.0, kind="decision", text="turned decode-1 to prefill"),
            Event(number=2, unix_s=999.5, kind="member", text="decode-1 \x1b[31mjoined"),
        ),
    )  # fmt: skip
    return msgspec.structs.replace(whole, **changes)


RECORD = RequestRecord(
    request_id="ab" * 16, gateway_id="gateway", tenant="default", sla_class="interactive",
    ttft_target_ms=500, tpot_target_ms=50, priority=0, received_unix_s=1000.0, reason="length",
    code=None, message=None, sla_attained=False, ttft_ms=800.0, tpot_ms=20.0, max_itl_ms=61.0,
    num_prompt_tokens=128, num_output_tokens=11, num_cached_tokens=64,
    timeline=Timeline(
        received_unix_s=1000.0, placed_s=0.01, prefill_start_s=0.6, first_token_s=0.8,
        transfer_end_s=0.82, decode_start_s=0.83, finished_s=1.0, prefill_node="prefill-0",
        decode_node="decode-0", transfer_bytes=1 << 20,
    ),
    steps=(Step(after_s=0.01, text="placed on prefill-0: shortest queue"),),
)  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    """The routes that commands ask; the key is `secret`."""

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer secret":
            self._answer(401, {"error": {"message": "this needs a key", "type": "t"}})
        elif self.path == "/api/snapshot":
            self._answer(200, snapshot())
        elif self.path == "/api/stream":
            later = snapshot(events=(Event(number=3, unix_s=1001.0, kind="order", text="drain"),))
            lines = b": hello\n\n"
            for each in (snapshot(), later):
                lines += b"event: snapshot\ndata: " + msgspec.json.encode(each) + b"\n\n"
            self._send(200, lines, "text/event-stream")
        elif self.path == f"/api/requests/{'ab' * 4}":
            self._answer(200, RECORD)
        elif self.path == "/api/requests/other":
            self._answer(200, {"version": 99})
        else:
            self._answer(404, {"error": {"message": "no such request", "type": "t"}})

    def _answer(self, status: int, value: object) -> None:
        self._send(status, msgspec.json.encode(value), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *unused: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """A dashboard's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.daemon = True
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_OPERATOR_KEY", "secret")


def drawn(view: Snapshot, **options: Any) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(draw(view, view.events, **options))
    return captured.get()


def test_top_once_shows_every_part(
    dashboard: str, key: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "--once", "--dashboard", dashboard]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    rows = [line.split() for line in text.splitlines()]
    assert "demo  up 1 h 2 min  P:D 1:2" in text
    assert ["interactive", "violated", "90.0%", "90.0%", "90.0%", "-50.0%", "10.0x", "queue"] in [
        row[:8] for row in rows
    ]
    assert "interactive: TTFT: prompts queue for 300 ms" in text
    assert "balance observe: prefill is the tighter role (next change in 12 s)" in text
    assert "decision: turned decode-1 to prefill" in text
    assert "goodput 3.6/s" in text and "1 live, 1 queued" in text
    assert ["prefill-0", "prefill", "ok", "75.0%"] in [row[:4] for row in rows]
    assert "████▒▒▒▒▒▒··········" in text and "2.0 MB/s" in text
    assert ["abababababab", "interactive", "default", "1.5", "s", "77", "prefill-0", "waits"] in [
        row[:8] for row in rows
    ]


def test_top_once_as_json_is_the_snapshot(
    dashboard: str, key: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "--once", "--json", "--dashboard", dashboard]) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=Snapshot) == snapshot()
    assert main(["top", "--json", "--dashboard", dashboard]) == 1
    assert "add --once" in capsys.readouterr().err


def test_a_page_that_is_too_small_keeps_its_head() -> None:
    events = tuple(
        Event(number=i, unix_s=float(i), kind="member", text=f"event {i}") for i in range(50)
    )
    text = drawn(snapshot(events=events), height=24, problem="no connection")
    assert text.startswith("demo") and "no connection" in text
    assert "event 49" in text and "event 1 " not in text and len(text.splitlines()) <= 24


def test_a_feed_goes_on_where_it_was(dashboard: str) -> None:
    feed = Feed(Dashboard("http://127.0.0.1:9", "secret"), snapshot())
    first, later = Dashboard(dashboard, "secret").stream()
    feed.take(first)  # its events are known
    feed.take(later)
    assert [event.number for event in feed.events] == [1, 2, 3]
    feed.close()
    feed.take(snapshot(coordinator_incarnation=2))
    assert [event.number for event in feed.events] == [1, 2]


def test_live_on_a_terminal_until_q(dashboard: str, key: None) -> None:
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "tandem.cli", "top", "--dashboard", dashboard],
        cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"},
    )  # fmt: skip
    os.close(terminal)
    try:
        shown = read_until(controller, b"order: drain")  # of the stream's second snapshot
        assert b"demo" in shown and b"goodput 3.6/s" in shown
        os.write(controller, b"q")
        read_until(controller, b"\x1b[?1049l")  # the screen as it was before
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait(10)
        os.close(controller)


def read_until(descriptor: int, words: bytes) -> bytes:
    text = b""
    deadline = time.monotonic() + 15
    while words not in text:
        left_s = deadline - time.monotonic()
        assert left_s > 0, text
        if select.select([descriptor], [], [], left_s)[0]:
            text += os.read(descriptor, 1 << 16)
    return text


def test_pages_as_a_bar() -> None:
    assert page_bar(PAGES, 10) == "██▒▒▒·····"
    one = msgspec.structs.replace(PAGES, free=999, cached=0, active=1, filling=0)
    assert page_bar(one, 10) == "█·········"
    assert page_bar(None, 3) == "???"
    full = msgspec.structs.replace(PAGES, free=0, cached=1, active=99, filling=0)
    assert page_bar(full, 10) == "█" * 10


def test_explain_says_where_the_time_went_and_why(
    dashboard: str, key: None, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dashboard", dashboard]
    assert main(["explain", "ab" * 4, *flags]) == 0
    text = capsys.readouterr().out
    assert "SLA         missed, class interactive: TTFT 800.0 of 500 ms, TPOT 20.0 of 50 ms" in text
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert "590.0 ms" not in rows["queue"] and "60.0%" in rows["queue"]
    assert "placed after 10.0 ms" in rows["queue"] and "1.0 MiB" in rows["transfer"]
    assert rows["TTFT"].rstrip().endswith("^")
    assert "TTFT is 300.0 ms over its target; 75% of that time was queue on prefill-0" in text
    assert "+10.0 ms     placed on prefill-0: shortest queue" in text
    assert main(["explain", "ab" * 4, "--json", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["ttft_ms"] == 800.0
    assert main(["explain", "ff" * 4, *flags]) == 1
    assert "no such request" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reason": None, "timeline": None}, "it has not ended yet"),
        ({"reason": "failed", "message": "prefill-0\ndied"}, "it failed: prefill-0\\ndied"),
        ({"ttft_ms": 100.0, "sla_attained": True}, "nothing: it kept its targets; 60% of"),
        ({"ttft_ms": 100.0, "tpot_ms": 90.0}, "TPOT is 40.0 ms over its target; 85% of that time"),
        ({"ttft_ms": 100.0}, "it ended before its answer was complete"),
    ],
)
def test_what_limits_a_request(changes: dict[str, Any], words: str) -> None:
    record = msgspec.structs.replace(RECORD, **changes)
    assert words in explain_limit(record) and words in render_record(record)


def test_waiting_for_a_node_is_told_from_waiting_on_one() -> None:
    assert RECORD.timeline is not None
    timeline = msgspec.structs.replace(RECORD.timeline, placed_s=0.55)
    text = explain_limit(msgspec.structs.replace(RECORD, timeline=timeline))
    assert "at the coordinator it waited for a node" in text


def test_without_a_dashboard_or_a_key(
    dashboard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "--once", "--dashboard", "http://127.0.0.1:9"]) == 1
    assert "no dashboard answers at http://127.0.0.1:9" in capsys.readouterr().err
    assert main(["top", "--dashboard", "127.0.0.1:7400"]) == 1
    assert "use http://host:port" in capsys.readouterr().err
    assert main(["explain", "ab" * 4, "--dashboard", dashboard]) == 1
    assert "this needs a key (commands take it by --key-file FILE" in capsys.readouterr().err
    file = tmp_path / "key"
    assert main(["top", "--once", "--dashboard", dashboard, "--key-file", str(file)]) == 1
    assert "cannot read the key" in capsys.readouterr().err
    file.write_text("secret\n")
    assert read_key(file) == "secret"
    assert main(["top", "--once", "--dashboard", dashboard, "--key-file", str(file)]) == 0


def test_a_server_that_is_no_dashboard_of_ours(dashboard: str) -> None:
    with pytest.raises(UnavailableError, match="is no dashboard of this version"):
        Dashboard(dashboard, "secret").record("other")


def test_events_are_read_line_by_line() -> None:
    lines = [b": comment\n", b"event: x\n", b"data: a\n", b"data: b\r\n", b"\n", b"data:c\n", b"\n"]
    assert list(event_data([*lines, b"data: cut off"])) == [b"a\nb", b"c"]
