"""Processes of other engines: started in an environment of their own, frozen, counted, ended."""

import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

END_S = 15.0
NUM_LAST_LINES = 6
END_OF_OUTPUT = ""


class PeerError(Exception):
    """An engine is not there, does not start, or does not answer; the text says why."""


class EngineProcess:
    """A command in a session of its own; it dies with this process where `setpriv` is there.

    A worker is given lines and answers in lines; what a server prints goes to its log.
    """

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], log: Path, *, is_worker: bool
    ) -> None:
        with_parent = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [*with_parent, *command],
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if is_worker else file,
                stderr=file,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name=f"output of {log.name}")
        self._reader.start()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def write(self, line: str) -> None:
        """Give it a line."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError:
            raise PeerError(self.last_words()) from None

    def read(self, timeout_s: float) -> str:
        """Its next line of output. Raises PeerError where there is none."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise PeerError(f"no answer in {timeout_s:g} s; {self.last_words()}") from None
        if line == END_OF_OUTPUT:
            raise PeerError(self.last_words())
        return line

    def last_words(self) -> str:
        """What its log ends with."""
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines()]
        said = [line for line in lines if line][-NUM_LAST_LINES:]
        return " | ".join(said)[-600:] or "it said nothing"

    def freeze(self) -> bool:
        """Take the cores from it, from threads that spin, too. Always possible."""
        self._signal(signal.SIGSTOP)
        return True

    def wake(self) -> None:
        """Go on."""
        self._signal(signal.SIGCONT)

    def memory_mb(self) -> float:
        """Of it and its descendants."""
        return memory_mb(process_tree(self._process.pid))

    def close(self) -> None:
        """Ask it to end, then make it."""
        self.wake()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._signal(signal.SIGKILL)
        self._reader.join()

    def _signal(self, number: signal.Signals) -> None:
        for pid in process_tree(self._process.pid):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _read(self) -> None:
        if self._process.stdout is not None:
            with self._process.stdout as lines:
                for line in lines:
                    self._lines.put(line)
        self._lines.put(END_OF_OUTPUT)


def process_tree(root: int) -> list[int]:
    """Pids of a process and its descendants, and of its session: orphans stay in that."""
    rows = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            fields = Path(entry.path, "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # ended meanwhile
            continue
        if fields[0] != "Z":
            rows[int(entry.name)] = (int(fields[1]), int(fields[3]))
    found = {pid for pid, (_, session) in rows.items() if session == root}
    found |= {root} & rows.keys()
    while more := {pid for pid, (parent, _) in rows.items() if parent in found} - found:
        found |= more
    return sorted(found)


def memory_mb(pids: Sequence[int]) -> float:
    """Resident memory in 10^6 bytes; a page that n processes share counts n times 1/n."""
    total_kb = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # ended meanwhile
            continue
        total_kb += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total_kb * 1024 / 1e6


def worker_path() -> tempfile.TemporaryDirectory[str]:
    """A folder for PYTHONPATH that shows `benchmarks` alone.

    Of this repository peers see nothing else: its `kernels` is the name of another package, too.
    """
    folder = tempfile.TemporaryDirectory(prefix="tandem-peers-")
    Path(folder.name, "benchmarks").symlink_to(Path(__file__).resolve().parents[1])
    return folder
