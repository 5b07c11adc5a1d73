"""One process of a cluster: its environment, its output, its `ready` line, its end.

No child survives its launcher, however that ends: the kernel kills it when the *thread* that
started it is gone, so start children from a thread that lives as long as they should.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
NUM_LINES_KEPT = 40
READY = re.compile(r"^ready (?P<role>\S+) (?P<address>\S+)$")
PACKAGES_FOLDER = Path(__file__).resolve().parents[1]

LineSink = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessPlan:
    """What to start: `python -m module *flags`, under a name that is unique in the cluster."""

    name: str
    module: str
    flags: tuple[str, ...]


class ChildProcess:
    """A running `python -m module`; its output goes line by line to a log file and to `sink`."""

    def __init__(
        self, plan: ProcessPlan, *, log: Path, env: Mapping[str, str], sink: LineSink
    ) -> None:
        self.name = plan.name
        self.log = log
        self._sink = sink
        self._address: str | None = None
        self._last_lines: deque[str] = deque(maxlen=NUM_LINES_KEPT)
        # -P: a folder in the current directory must not shadow one of ours.
        command = [sys.executable, "-P", "-m", plan.module, *plan.flags]
        self._process = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # the terminal's Ctrl-C is ours, to drain in order
            preexec_fn=_DieWithParent(),
        )
        self._reader = threading.Thread(target=self._read, name=f"log of {plan.name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def address(self) -> str | None:
        """What the process said it listens on; None until it is ready."""
        return self._address

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        return self._process.poll()

    def last_lines(self) -> list[str]:
        """The end of its output. Waits for output still in the pipe where the process is gone."""
        if self.exit_status is not None:
            self._reader.join(1.0)
        return list(self._last_lines)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; without effect on a process that is gone."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended within the time; then all its output was read."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        self._reader.join(1.0)
        return True

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines, self.log.open("w", encoding="utf-8") as log:
            for line in lines:
                log.write(line)
                log.flush()
                text = line.rstrip("\n")
                self._last_lines.append(text)
                self._sink(self.name, text)
                if self._address is None and (match := READY.match(text)):
                    self._address = match["address"]


class _DieWithParent:
    """Runs in the child between fork and exec: no orphan, default handling of Ctrl-C.

    A launcher that was started in the background by a shell ignores SIGINT, and children would
    inherit that.
    """

    def __init__(self) -> None:
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._parent = os.getpid()

    def __call__(self) -> None:
        self._prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != self._parent:  # died before the call above
            os._exit(1)
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def child_environment(env: Mapping[str, str], num_threads: int) -> dict[str, str]:
    """`env` with `num_threads` for every thread pool, and threads that wait instead of spinning.

    Two processes that spin on two cores were measured to be 12 to 25 times slower.
    """
    count = str(num_threads)
    existing = env.get("PYTHONPATH")
    paths: Sequence[str] = [str(PACKAGES_FOLDER), *([existing] if existing else [])]
    return {
        **env,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "NUMBA_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(paths),
    }
