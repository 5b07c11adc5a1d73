"""`tandem top`: the dashboard in a terminal, live or once."""

import argparse
import contextlib
import os
import select
import sys
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Iterator

import msgspec
from rich.console import Console
from rich.live import Live

from tandem.dashboard_client import Dashboard, connect
from tandem.errors import UnavailableError
from tandem.messages.operations import Event, Snapshot
from tandem.top import draw

KEY_S = 0.2
AGAIN_S = 1.0
NUM_EVENTS = 200
ONCE_COLUMNS = 160  # where the output is no terminal that has a width


def run(args: argparse.Namespace) -> int:
    """Exit status 0. Raises UnavailableError where no dashboard answers, ValueError for flags."""
    if args.json and not args.once:
        raise ValueError("--json prints one snapshot: add --once")
    dashboard = connect(args)
    snapshot = dashboard.snapshot()
    if args.once and args.json:
        print(msgspec.json.encode(snapshot).decode())
    elif args.once:
        _plain_console().print(draw(snapshot, snapshot.events))
    else:
        watch(dashboard, snapshot)
    return 0


class Feed:
    """The latest snapshot and the last events, kept up to date by a thread of its own."""

    def __init__(self, dashboard: Dashboard, first: Snapshot) -> None:
        self.snapshot = first
        self.events: deque[Event] = deque(first.events, NUM_EVENTS)
        self.problem = ""
        self._dashboard = dashboard
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="dashboard", daemon=True).start()

    def take(self, snapshot: Snapshot) -> None:
        """A new state; events that are known already are not listed twice."""
        if snapshot.coordinator_incarnation != self.snapshot.coordinator_incarnation:
            self.events.clear()  # another coordinator counts from one
        last = self.events[-1].number if self.events else -1
        self.events.extend(event for event in snapshot.events if event.number > last)
        self.snapshot, self.problem = snapshot, ""

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                for snapshot in self._dashboard.stream():
                    self.take(snapshot)
                    if self._closed.is_set():
                        return
                self.problem = "the dashboard ended the stream; asking again"
            except (UnavailableError, ValueError) as error:
                self.problem = str(error)
            self._closed.wait(AGAIN_S)

    def close(self) -> None:
        """End the thread with the next snapshot."""
        self._closed.set()


def watch(dashboard: Dashboard, first: Snapshot) -> None:
    """Draw until q or Ctrl-C."""
    feed = Feed(dashboard, first)
    console = Console(no_color="NO_COLOR" in os.environ)
    try:
        with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
            while "q" not in pressed():
                events = tuple(feed.events)
                view = draw(feed.snapshot, events, height=console.height, problem=feed.problem)
                live.update(view, refresh=True)
    finally:
        feed.close()


@contextlib.contextmanager
def _keys() -> Iterator["_Pressed"]:
    """What is typed, without waiting for Enter; nothing where standard input is no terminal."""
    if not sys.stdin.isatty():
        yield _Pressed(None)
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield _Pressed(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class _Pressed:
    """Keys pressed within the next moment."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def __call__(self) -> str:
        if self._descriptor is None:
            time.sleep(KEY_S)
            return ""
        if not select.select([self._descriptor], [], [], KEY_S)[0]:
            return ""
        return os.read(self._descriptor, 64).decode(errors="replace")


def _plain_console() -> Console:
    """For output that a person reads once, or a script: no colour unless it is a terminal."""
    if sys.stdout.isatty():
        return Console(no_color="NO_COLOR" in os.environ)
    return Console(width=ONCE_COLUMNS, color_system=None, no_color=True)
