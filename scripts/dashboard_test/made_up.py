"""The page against made-up deployments: rare states, the key, and the CPU that it takes."""

import time

import httpx

from scripts.dashboard_test.browser import Browser
from scripts.dashboard_test.checks import LIVE, NARROW, Report
from scripts.dashboard_test.fixture import Fixture, Running
from scripts.dashboard_test.world import World

LONG_AGO_S = 200_000.0
MEASURED_S = 20.0


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
        _cpu(report, browser, server)


def try_key(report: Report) -> None:
    """It asks for a key, refuses a wrong one, and takes the right one."""
    world = World(began_at=time.time() - LONG_AGO_S)
    with Running(Fixture(world, key="right")) as server, Browser.open() as browser:
        browser.resize(1280, 900)
        browser.go(server.address)
        report.await_(browser, "it asks for a key", "document.getElementById('key-dialog').open")
        time.sleep(0.5)
        browser.screenshot(report.folder / "dashboard-key.png", whole_page=False)
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
