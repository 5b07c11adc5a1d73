"""What is checked of a page, and the list of what was found."""

import time
from pathlib import Path

from scripts.dashboard_test.browser import Browser, BrowserError

LIVE = "document.body.dataset.link === 'live'"
NARROW, WIDE = (390, 844), (1280, 900)
# What a browser says by itself when the server is away; everything else in the console is wrong.
EXPECTED = (
    "net::ERR_CONNECTION_REFUSED",
    "net::ERR_INCOMPLETE_CHUNKED_ENCODING",
    "net::ERR_CONNECTION_RESET",
    "net::ERR_EMPTY_RESPONSE",
)


class Report:
    """Lines of what held, and what did not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failures: list[str] = []
        self._began_at = time.monotonic()

    def check(self, holds: object, text: str) -> None:
        """Note one fact."""
        print(
            f"{time.monotonic() - self._began_at:6.1f} s  {'ok' if holds else 'FAILED':6}  {text}",
            flush=True,
        )
        if not holds:
            self.failures.append(text)

    def await_(self, browser: Browser, text: str, script: str, *, limit_s: float = 30.0) -> None:
        """Note that a condition came true in the page within the limit."""
        try:
            browser.wait(script, limit_s=limit_s)
            self.check(True, text)
        except BrowserError as error:
            self.check(False, f"{text}\n{error}")

    def console(self, browser: Browser, text: str, *, is_cut: bool = False) -> None:
        """Note that the console is empty, but for what a lost connection leaves there."""
        lines = browser.console()
        wrong = [s for s in lines if not (is_cut and any(part in s for part in EXPECTED))]
        self.check(not wrong, f"{text}: no errors in the console {wrong or ''}")

    def shoot(self, browser: Browser, name: str, size: tuple[int, int] = WIDE) -> None:
        """A screenshot of the whole page at a width, which must not scroll sideways."""
        width, height = size
        is_narrow = size == NARROW
        browser.resize(width, height, is_mobile=is_narrow)
        browser.run("window.scrollTo(0, 0)")
        time.sleep(0.4)
        widest = browser.number("document.documentElement.scrollWidth")
        self.check(
            widest <= width, f"{name}: {widest:.0f} px wide in {width}, no horizontal scroll"
        )
        whole = int(browser.number("document.documentElement.scrollHeight"))
        browser.resize(width, whole, is_mobile=is_narrow)
        time.sleep(0.6)
        end = browser.number("document.querySelector('.foot').getBoundingClientRect().bottom")
        browser.screenshot(self.folder / f"dashboard-{name}.png", size=(width, int(end)))
        browser.resize(*WIDE)


def text_of(browser: Browser, element_id: str) -> str:
    """The text of an element."""
    return str(browser.run("return document.getElementById(arguments[0]).innerText", element_id))
