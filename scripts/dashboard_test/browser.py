"""Headless Chromium by chromedriver, over plain W3C WebDriver calls: no npm, no client package."""

import base64
import contextlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec

HOW_TO_INSTALL = (
    "needs Chromium and its driver: apt-get install -y chromium chromium-driver fonts-inter"
)
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Escape": "\ue00c", "Tab": "\ue004", "Enter": "\ue007", "ArrowLeft": "\ue012"}


STARTED = re.compile(r"started successfully on port (?P<port>[0-9]+)")


class _LogEntry(msgspec.Struct):
    level: str
    message: str


class _Metric(msgspec.Struct):
    name: str
    value: float


class _Metrics(msgspec.Struct):
    metrics: list[_Metric]


class BrowserError(Exception):
    """The browser did not do what it was told; the text says what."""


class Browser:
    """One page. `with Browser.open() as browser`."""

    def __init__(self, http: httpx.Client, session: str) -> None:
        self._http = http
        self._session = session

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator["Browser"]:
        """Start driver and browser with an empty profile; both end with the block."""
        driver = shutil.which("chromedriver")
        chromium = shutil.which("chromium")
        if driver is None or chromium is None:
            raise BrowserError(HOW_TO_INSTALL)
        with (
            tempfile.TemporaryDirectory(prefix="tandem-browser-") as profile,
            _driving(driver) as port,
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http,
        ):
            browser = cls(http, _new_session(http, chromium, profile))
            try:
                yield browser
            finally:
                http.delete(f"/session/{browser._session}")

    def _call(self, path: str, body: dict[str, object] | None = None) -> object:
        answer = self._http.post(f"/session/{self._session}/{path}", json=body or {})
        value = answer.json()["value"]
        if answer.status_code != 200:
            raise BrowserError(f"{path}: {value['error']}: {value['message'][:600]}")
        return value

    def _find(self, css: str) -> str:
        found = self._call("element", {"using": "css selector", "value": css})
        return msgspec.convert(found, dict[str, str])[ELEMENT]

    def go(self, url: str) -> None:
        """Load a page."""
        self._call("url", {"url": url})

    def devtools(self, command: str, **params: object) -> object:
        """A command of the DevTools protocol."""
        return self._call("goog/cdp/execute", {"cmd": command, "params": params})

    def run(self, script: str, *arguments: object) -> object:
        """What a function body returns in the page."""
        return self._call("execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, *arguments: object, limit_s: float = 30.0) -> object:
        """Until an expression is true; returns its value. Raises BrowserError with the page."""
        deadline = time.monotonic() + limit_s
        while True:
            value = self.run(f"return ({script})", *arguments)
            if value:
                return value
            if time.monotonic() > deadline:
                text = str(self.run("return document.body.innerText"))
                raise BrowserError(
                    f"not within {limit_s:g} s: {script} {arguments}\n{text[:600]}\n"
                    f"console: {self.console()}"
                )
            time.sleep(0.1)

    def number(self, expression: str) -> float:
        """What an expression is in the page."""
        return msgspec.convert(self.run(f"return {expression}"), float)

    def click(self, css: str) -> None:
        """As a user does: it has to be visible and not covered."""
        self._call(f"element/{self._find(css)}/click")

    def type(self, css: str, text: str) -> None:
        """Type into a field."""
        self._call(f"element/{self._find(css)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Keys, whatever has the focus."""
        codes = [KEYS.get(key, key) for key in keys]
        steps = [{"type": t, "value": c} for c in codes for t in ("keyDown", "keyUp")]
        self._call("actions", {"actions": [{"type": "key", "id": "keys", "actions": steps}]})

    def resize(self, width: int, height: int, *, scale: float = 1, is_mobile: bool = False) -> None:
        """The size of the page in CSS pixels."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=is_mobile,
        )

    def prefer(self, scheme: str) -> None:
        """Light or dark, as the user's system says."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path, *, size: tuple[int, int] | None = None) -> None:
        """A PNG of what is seen, or of so much from the top left corner on."""
        clip = {}
        if size is not None:
            clip = {"clip": {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}}
        shot = self.devtools("Page.captureScreenshot", **clip)
        path.write_bytes(base64.b64decode(msgspec.convert(shot, dict[str, str])["data"]))

    def console(self) -> list[str]:
        """Errors and warnings since the last call."""
        entries = msgspec.convert(self._call("se/log", {"type": "browser"}), list[_LogEntry])
        return [entry.message for entry in entries if entry.level in ("SEVERE", "WARNING")]

    def cpu_s(self) -> float:
        """CPU seconds that the page's main thread has taken since it was loaded."""
        self.devtools("Performance.enable", timeDomain="threadTicks")
        found = msgspec.convert(self.devtools("Performance.getMetrics"), _Metrics)
        return next(each.value for each in found.metrics if each.name == "TaskDuration")


def _new_session(http: httpx.Client, chromium: str, profile: str) -> str:
    wanted = {
        "goog:chromeOptions": {
            "binary": chromium,
            "args": [*CHROMIUM_FLAGS, f"--user-data-dir={profile}/profile"],
        },
        "goog:loggingPrefs": {"browser": "ALL"},
    }
    body = {"capabilities": {"alwaysMatch": wanted}}
    answer = http.post("/session", json=body)
    value = answer.json()["value"]
    if answer.status_code != 200:
        raise BrowserError(f"Chromium did not start: {value['message'][:1000]}")
    return str(value["sessionId"])


@contextlib.contextmanager
def _driving(driver: str) -> Iterator[int]:
    """The port of a driver that runs until the block ends."""
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None, "it is a pipe"
        for line in process.stdout:
            if found := STARTED.search(line):
                yield int(found["port"])
                return
        raise BrowserError("chromedriver ended before it said its port")
    finally:
        process.terminate()
        process.communicate(timeout=10)
