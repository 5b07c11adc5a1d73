"""How far loading weights is: a bar on a terminal, else a line of the log for every tenth."""

import logging
import sys
import time

from tqdm import tqdm

QUIET_S = 1.0  # what takes less needs no lines
log = logging.getLogger("tandem.node")


class LoadProgress:
    """Called with bytes loaded and bytes in all; the bar ends with the last of them."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._bar: tqdm[object] | None = None
        self._quiet_until = time.monotonic() + QUIET_S
        self._next_percent = 10

    def __call__(self, num_done: int, num_total: int) -> None:
        """Show it."""
        if self._is_terminal:
            self._draw(num_done, num_total)
            return
        percent = 100 * num_done // max(1, num_total)
        if percent >= self._next_percent and time.monotonic() >= self._quiet_until:
            self._next_percent = percent - percent % 10 + 10
            log.info("loading weights: %d %% of %.1f GB", percent, num_total / 1e9)

    def _draw(self, num_done: int, num_total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(desc="loading weights", unit="B", unit_scale=True, total=num_total)
        self._bar.update(num_done - self._bar.n)
        if num_done >= num_total:
            self._bar.close()
