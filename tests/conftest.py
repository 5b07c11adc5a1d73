"""What all tests share: the device decision, leak guards, ports, run folders, the demo model.

Every test is followed by a look for what it left behind: processes, non-daemon threads, sockets,
memfds and shared memory. Processes are recognised by an environment variable that they inherit, so
that detached grandchildren are found too; a leaked one is killed before it can disturb others.
"""

import gc
import importlib
import os
import shutil
import signal
import socket
import stat
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
SESSION_VARIABLE = "TANDEM_TEST_SESSION"
# Exits may be on their way when a test returns (a child between SIGTERM and death).
GRACE_S = 2.0
DRIVERS_OWN = "/memfd:/.nvidia"  # code that a GPU's driver made, for the process's lifetime
SHARED_MEMORY_PREFIXES = ("tandem", "psm_", "torch_")

# Both are read when first imported, so they are set before any test module is.
os.environ[SESSION_VARIABLE] = f"{os.getpid()}-{time.time_ns()}"
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Coordinators that tests start refuse nobody for being slow: machines that run tests are.
os.environ.setdefault("TANDEM_EARLY_REJECTION", "off")

# The same examples in every run; time limits are pytest's.
settings.register_profile("tandem", derandomize=True, deadline=None, database=None)
settings.load_profile("tandem")


@dataclass(frozen=True, slots=True)
class Belongings:
    """What this test session holds at one moment."""

    processes: dict[int, str]
    threads: frozenset[threading.Thread]
    descriptors: Counter[str]
    shared_memory: frozenset[str]


def our_processes() -> dict[int, str]:
    """Pid and command line of every living descendant of this session, ourselves excepted."""
    marker = f"{SESSION_VARIABLE}={os.environ[SESSION_VARIABLE]}".encode()
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            # A zombie's environment is empty: dead, and its parent will collect it.
            if marker not in Path(entry.path, "environ").read_bytes().split(b"\0"):
                continue
            command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # not ours, or gone meanwhile
            continue
        if "multiprocessing.resource_tracker" not in command:
            found[int(entry.name)] = command.strip()
    return found


def our_descriptors() -> Counter[str]:
    """Open sockets and memfds of this process, by kind."""
    kinds: Counter[str] = Counter()
    for entry in os.scandir("/proc/self/fd"):
        try:
            target = os.readlink(entry.path)
        except OSError:  # the descriptor of this very listing
            continue
        if target.startswith(("socket:", "/memfd:")) and not target.startswith(DRIVERS_OWN):
            kinds[target.split(":")[0].strip("/")] += 1
    return kinds


def our_shared_memory() -> frozenset[str]:
    """Names in /dev/shm that our libraries would give, of this user."""
    names = set()
    for entry in os.scandir("/dev/shm"):
        try:
            is_ours = entry.stat(follow_symlinks=False).st_uid == os.getuid()
        except FileNotFoundError:
            continue
        if is_ours and entry.name.startswith(SHARED_MEMORY_PREFIXES):
            names.add(entry.name)
    return frozenset(names)


def belongings() -> Belongings:
    threads = frozenset(
        thread
        for thread in threading.enumerate()
        if not thread.daemon and not thread.name.startswith("pytest_timeout")
    )
    return Belongings(our_processes(), threads, our_descriptors(), our_shared_memory())


def leaks_since(before: Belongings) -> list[str]:
    """What exists now and did not exist before, in words."""
    now = belongings()
    started = now.processes.keys() - before.processes.keys()
    leaks = [f"process {pid}: {now.processes[pid]}" for pid in sorted(started)]
    leaks += [f"thread {thread.name}" for thread in now.threads - before.threads]
    more = now.descriptors - before.descriptors
    leaks += [f"{count} more {kind} descriptors" for kind, count in more.items()]
    segments = now.shared_memory - before.shared_memory
    if segments:
        segments -= mapped_by_others()
    return leaks + [f"/dev/shm/{name}" for name in sorted(segments)]


def mapped_by_others() -> frozenset[str]:
    """Names in /dev/shm that living processes outside this session have mapped."""
    ours = our_processes().keys() | {os.getpid()}
    names = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) not in ours:
            try:
                lines = Path(entry.path, "maps").read_text().splitlines()
            except OSError:
                continue
            names |= {line.split("/dev/shm/")[1] for line in lines if "/dev/shm/" in line}
    return frozenset(names)


def check_nothing_left(before: Belongings) -> None:
    """Fail, after a grace period, where something of ours outlived its test; kill processes."""
    leaks = leaks_since(before)
    if leaks:
        gc.collect()
    deadline = time.monotonic() + GRACE_S
    while leaks and time.monotonic() < deadline:
        time.sleep(0.02)
        leaks = leaks_since(before)
    for pid in our_processes().keys() - before.processes.keys():
        os.kill(pid, signal.SIGKILL)
    if leaks:
        message = "left behind: " + "; ".join(leaks)
        pytest.fail(message, pytrace=False)


def begin_gpu() -> None:
    """Where there is a GPU: what its driver opens at the first use stays open, no test left it."""
    if Path("/dev/nvidiactl").exists():
        torch = importlib.import_module("torch")  # a second, which other machines need not wait
        if torch.cuda.is_available():
            torch.zeros(1, device="cuda")


@pytest.fixture(scope="session", autouse=True)
def nothing_left_after_the_session() -> Iterator[None]:
    begin_gpu()
    before = belongings()
    yield
    check_nothing_left(before)


@pytest.fixture(autouse=True)
def nothing_left_after_the_test() -> Iterator[None]:
    """Fixtures of wider scope are set up before this one, so what they hold is not a leak."""
    before = belongings()
    yield
    check_nothing_left(before)


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Draws TCP ports on loopback that were free a moment ago, each a different one."""
    drawn: set[int] = set()

    def draw() -> int:
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            if port not in drawn:
                drawn.add(port)
                return port

    return draw


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """An empty folder with a path short enough for Unix sockets (107 bytes), removed afterwards.

    Fails where a socket file is left in it. A test that kills processes uses `tmp_path` instead.
    """
    folder = Path(tempfile.mkdtemp(prefix="tandem-"))
    yield folder
    left = [str(path) for path in folder.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
    shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"socket files left behind: {left}"


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of this checkout."""
    return ROOT


@pytest.fixture(scope="session")
def demo_model(repository: Path) -> Path:
    """Folder of the shipped demo model."""
    folder = repository / "models" / "demo"
    assert (folder / "config.json").exists(), f"{folder} is part of the repository but missing"
    return folder
