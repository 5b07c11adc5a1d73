"""What the asyncio shell of every process does: stop on signals, run loops until then, log."""

import asyncio
import logging
import signal
from collections.abc import Coroutine
from typing import Any

from tandem.log_lines import PrintableFormatter


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


def log_to_stderr(level: str) -> None:
    """Show log lines from `level` on, one line each; standard output is for results."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
