"""What the asyncio shell of every process does: stop on signals, run loops until then, log."""

import asyncio
import dataclasses
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Protocol

from tandem.log_lines import JsonLines, TextLines
from tandem.stats_line import Sample, StatsLine

STATS_S = 10.0
logger = logging.getLogger(__name__)


class LogConfig(Protocol):
    """What a process's config says of its log."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def log_level(self) -> str:
        """The least severe level that is shown."""

    @property
    def log_format(self) -> str:
        """`text` or `json`."""


def stop_on_signals() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set; call it inside the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return stop


async def run_until(stop: asyncio.Event, *loops: Coroutine[Any, Any, None]) -> None:
    """Run the loops until `stop` is set or one of them ends; its error is raised, the rest end.

    Cancelling it ends the loops too.
    """
    tasks = [asyncio.ensure_future(loop) for loop in loops]
    stopped = asyncio.ensure_future(stop.wait())
    try:
        done, _ = await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        for ended in done:
            ended.result()
    finally:
        for task in [*tasks, stopped]:
            task.cancel()
        await asyncio.gather(*tasks, stopped, return_exceptions=True)


class Log:
    """The log of this process, on standard error: standard output is for results."""

    def __init__(self, config: LogConfig, role: str, name: str | None = None) -> None:
        self._role = role
        member = role if name is None else f"{role} {name}"
        is_coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        self._lines: TextLines | JsonLines = (
            JsonLines(member)
            if config.log_format == "json"
            else TextLines(member, is_coloured=is_coloured)
        )
        handler = logging.StreamHandler()
        handler.setFormatter(self._lines)
        logging.basicConfig(level=config.log_level.upper(), handlers=[handler])
        for field in dataclasses.fields(config):
            logger.debug("config: %s = %r", field.name, getattr(config, field.name))

    def name(self, name: str) -> None:
        """From now on lines have the process's name beside its role."""
        self._lines.member = f"{self._role} {name}"


async def log_stats(log: logging.Logger, sample: Callable[[], Sample], device: str = "cpu") -> None:
    """Write a line of figures every ten seconds; at debug where nothing happened."""
    stats = StatsLine(time.monotonic(), device)
    while True:
        line = stats.take(sample(), time.monotonic())
        if line is not None:
            log.log(line[0], "%s", line[1])
        await asyncio.sleep(STATS_S)
