"""The page against made-up deployments: rare states, the key, and the CPU that it takes."""

import time

import httpx

from scripts.dashboard_test.browser import Browser
from scripts.dashboard_test.checks import LIVE, NARROW, Report
from scripts.dashboard_test.fixture import Fixture, Running
from scripts.dashboard_test.world import World

LONG_AGO_S = 200_000.0
MEASURED_S = 20.0
_DRAWN = "document.querySelector('#chart-ttft .plot .line').getAttribute('d') !== null"


def try_states(report: Report) -> None:
    """No nodes, little and much traffic, a death, 64 nodes; wide and narrow."""
    world = World(began_at=time.time() - LONG_AGO_S)
    with Running(Fixture(world)) as server, Browser.open() as browser:
        browser.resize(1280, 900)
        for state, name in (
            ("empty", "made-up-empty"),
            ("calm", "made-up-calm"),
            ("death", "made-up-death"),
            ("many", "made-up-many"),
        ):
            httpx.post(f"{server.address}/fixture/{state}")
            browser.go(server.address)
            report.await_(browser, f"made-up deployment {state!r} is shown", LIVE)
            time.sleep(1.5)
            report.shoot(browser, name)
            report.shoot(browser, f"{name}-mobile", NARROW)
            report.console(browser, state)
        _keyboard(report, browser, server)
        _cpu(report, browser, server)


def _keyboard(report: Report, browser: Browser, server: Running) -> None:
    httpx.post(f"{server.address}/fixture/loaded")
    browser.go(server.address)
    report.await_(browser, "the charts are drawn", f"{LIVE} && {_DRAWN}")
    browser.press("Tab")
    first = browser.run("return document.activeElement.className")
    report.check(first == "skip", "the first stop of the Tab key skips to the verdicts")
    browser.run("document.querySelector('#chart-ttft .plot').focus()")
    browser.press("ArrowLeft", "ArrowLeft")
    said = "document.getElementById('live').innerText"
    report.await_(browser, "arrow keys read a chart out", f"{said}.includes('queue')")
    needles = "document.querySelectorAll('.needle[d^=M]').length"
    report.await_(browser, "every chart marks that moment", f"{needles} === 8")
    browser.screenshot(report.folder / "dashboard-moment.png")
    browser.press("Escape", "/")
    browser.type("#event-filter", "turns decode-2")
    lines = "document.querySelectorAll('#event-log li').length"
    report.await_(browser, "the filter leaves one event", f"{lines} === 1")
    browser.press("Escape", "p")
    report.await_(browser, "p holds the page", "document.body.innerText.includes('Held')")
    before = browser.run("return document.getElementById('figures').innerText")
    time.sleep(3)
    after = browser.run("return document.getElementById('figures').innerText")
    report.check(before == after, "held figures stay")
    browser.press("p", "t")
    report.await_(
        browser, "t turns the light off", "document.documentElement.dataset.theme === 'dark'"
    )
    browser.press("t")
    report.console(browser, "keyboard")


def try_key(report: Report) -> None:
    """It asks for a key, refuses a wrong one, and takes the right one."""
    world = World(began_at=time.time() - LONG_AGO_S)
    with Running(Fixture(world, key="right")) as server, Browser.open() as browser:
        browser.resize(1280, 900)
        browser.go(server.address)
        report.await_(browser, "it asks for a key", "document.getElementById('key-dialog').open")
        time.sleep(0.5)
        browser.screenshot(report.folder / "dashboard-key.png")
        browser.type("#key", "wrong")
        browser.press("Enter")
        report.await_(
            browser,
            "a wrong key is refused in words",
            "document.getElementById('key-error').innerText.includes('not known')",
        )
        browser.run("document.getElementById('key').value = ''")
        browser.type("#key", "right")
        browser.press("Enter")
        report.await_(
            browser,
            "the right key opens it",
            f"{LIVE} && !document.getElementById('key-dialog').open",
        )
        browser.press("?")
        report.await_(browser, "? lists the keys", "document.getElementById('help-dialog').open")
        browser.press("Escape")


def _cpu(report: Report, browser: Browser, server: Running) -> None:
    httpx.post(f"{server.address}/fixture/loaded")
    for window, limit in (("1", 0.2), ("3", 0.2)):
        browser.press(window)
        time.sleep(3)
        before = browser.cpu_s()
        time.sleep(MEASURED_S)
        share = (browser.cpu_s() - before) / MEASURED_S
        report.check(share < limit, f"updates take {share:.1%} of a core (window key {window})")
