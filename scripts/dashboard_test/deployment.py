"""The page against a real deployment: idle, under load, drained, restarted, with a dead node."""

import time

from scripts.dashboard_test.browser import Browser
from scripts.dashboard_test.checks import LIVE, NARROW, Report, text_of
from scripts.dashboard_test.load import Load
from tandem.launch import LocalCluster

MODEL = "models/demo"
# As the fake device's tests: 4 ms a step, half a millisecond per prompt token and decode row.
NODE_ARGS = ("--device", "fake", "--fake-costs", "0.004:0.0005:0:0.0005:0")
COORDINATOR_ARGS = (
    *("--balance", "on", "--balance-dwell-s", "20", "--default-class", "interactive"),
    # Looser than the defaults: two cores, a browser and nine processes.
    *("--sla-classes", "interactive:800:60:0.95", "--sla-classes", "standard:2500:100:0.9"),
    *("--sla-classes", "batch:30000:500:0.9"),
)


def try_deployment(report: Report, *, load_s: float, rate: float) -> None:
    """All of it; `load_s` under load before the first screenshot of it."""
    cluster = LocalCluster(
        model=MODEL,
        num_prefill=2,
        num_decode=4,
        node_args=NODE_ARGS,
        coordinator_args=COORDINATOR_ARGS,
        run_dir=None,
    )
    with cluster, Browser.open() as browser:
        assert cluster.dashboard_address is not None, "it was not switched off"
        browser.resize(1280, 900)
        browser.prefer("light")
        browser.go(cluster.dashboard_address)
        _idle(report, browser)
        with Load(cluster.gateway_address, rate=rate) as load:
            _under_load(report, browser, load_s)
            _one_request(report, browser)
            _drain(report, browser, cluster)
            _restart(report, browser, cluster)
            _death(report, browser, cluster)
        report.check(load.num_done > 20, f"{load.num_done} answers, {load.num_refused} refused")


def _idle(report: Report, browser: Browser) -> None:
    report.await_(browser, "the page is live", LIVE)
    report.await_(
        browser,
        "it says that nothing is to do",
        "document.getElementById('headline').innerText === 'Ready, without traffic'",
    )
    report.await_(
        browser,
        "it lists six nodes",
        "document.querySelectorAll('#node-table tbody tr').length === 6",
    )
    time.sleep(8)
    report.shoot(browser, "idle")
    report.console(browser, "idle")


def _under_load(report: Report, browser: Browser, load_s: float) -> None:
    has_line = (
        "[...document.querySelectorAll('#chart-{} .plot .line')].some((p) => p.getAttribute('d'))"
    )
    report.await_(
        browser,
        "requests arrive in the verdict",
        "document.querySelectorAll('#classes .class-verdict.t-none').length < 3",
    )
    for chart in ("balance", "ttft", "itl", "kv", "busy", "transfers", "flow"):
        report.await_(browser, f"chart {chart} draws", has_line.format(chart), limit_s=60)
    before = text_of(browser, "figures"), text_of(browser, "link-age")
    script = "document.getElementById('{}').innerText !== {!r}"
    report.await_(browser, "the time of the data goes on", script.format("link-age", before[1]))
    report.await_(browser, "the figures change", script.format("figures", before[0]), limit_s=60)
    time.sleep(load_s)
    for key, window in (("2", "1h"), ("3", "3d"), ("1", "5m")):
        browser.press(key)
        pressed = f"document.querySelector('[data-window=\"{window}\"]').ariaPressed === 'true'"
        report.await_(browser, f"key {key} shows {window}", pressed)
        time.sleep(1)
    report.shoot(browser, "load")
    report.shoot(browser, "mobile", NARROW)
    browser.prefer("dark")
    report.shoot(browser, "dark")
    browser.prefer("light")
    report.console(browser, "under load")


def _one_request(report: Report, browser: Browser) -> None:
    browser.run("document.querySelectorAll('#request-kinds button')[1].click()")
    report.await_(
        browser,
        "ended requests are listed",
        "document.querySelectorAll('#request-table tbody button').length > 0",
    )
    browser.run("document.querySelector('#request-table tbody button').click()")
    report.await_(
        browser,
        "a request's timeline is drawn",
        "document.querySelectorAll('#record-body .g-bar').length >= 4",
    )
    browser.run("document.querySelectorAll('#request-kinds button')[0].click()")
    report.console(browser, "one request")


def _open_node(browser: Browser, name: str) -> None:
    """Its drill-down; it may be drawn anew meanwhile."""
    browser.run(
        "const b = [...document.querySelectorAll('#node-table .link-button')]"
        ".find((x) => x.innerText.includes(arguments[0]));"
        "if (b.ariaExpanded === 'false') b.click();"
        "b.scrollIntoView({block: 'start'}); window.scrollBy(0, -80)",
        name,
    )


def _row(name: str, state: str) -> str:
    """A script: whether the row of a node shows a state."""
    return (
        "[...document.querySelectorAll('#node-table tr.row')].some((r) => "
        f"r.innerText.includes('{name}') && r.innerText.includes('{state}'))"
    )


def _drain(report: Report, browser: Browser, cluster: LocalCluster) -> None:
    _open_node(browser, "decode-2")
    time.sleep(0.3)
    browser.click("#node-table tr.detail .buttons button[type=button]")
    report.await_(
        browser, "draining is asked for again", "document.querySelector('#confirm-dialog').open"
    )
    browser.click("#confirm-yes")
    report.await_(
        browser,
        "the coordinator's answer is shown",
        "document.getElementById('notice').innerText.includes('drain')",
    )
    report.await_(
        browser,
        "the node drains, and leaves",
        f"{_row('decode-2', 'draining')} || "
        "!document.getElementById('node-table').innerText.includes('decode-2')",
    )
    has_ended = cluster.processes["decode-2"].wait(60)
    report.check(has_ended, "the drained node's process has ended")
    report.console(browser, "drain")


def _restart(report: Report, browser: Browser, cluster: LocalCluster) -> None:
    browser.run("window.isSamePage = true")
    cluster.kill("coordinator")
    report.await_(
        browser,
        "the loss of the coordinator is shown",
        "document.body.dataset.link === 'reconnecting'",
    )
    time.sleep(2)
    report.shoot(browser, "reconnecting")
    cluster.restart("coordinator")
    report.await_(browser, "the page is live again", LIVE, limit_s=60)
    report.await_(
        browser,
        "it says that the coordinator restarted",
        "document.getElementById('notice').innerText.includes('restarted')",
    )
    report.await_(
        browser,
        "the nodes are back",
        f"{_row('decode-0', 'ok')} && {_row('prefill-1', 'ok')}",
        limit_s=60,
    )
    report.check(browser.run("return window.isSamePage === true"), "without a reload")
    report.console(browser, "restart", is_cut=True)


def _death(report: Report, browser: Browser, cluster: LocalCluster) -> None:
    time.sleep(15)
    cluster.kill("decode-1")
    report.await_(browser, "a node's death is shown", _row("decode-1", "down"))
    report.await_(
        browser,
        "the verdict names it",
        "document.getElementById('headline-box').innerText.includes('decode-1')",
    )
    report.await_(
        browser,
        "and the log",
        "document.getElementById('event-log').innerText.includes('decode-1')",
    )
    time.sleep(6)
    report.shoot(browser, "death")
    report.console(browser, "death")
