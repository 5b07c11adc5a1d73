"""The leak guard of conftest.py finds what it is for, shown on a test run of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

LEAKY_TESTS = """
import os, socket, subprocess, threading, time

kept = []

def test_process():
    subprocess.Popen(["sleep", "20"], start_new_session=True)

def test_grandchild():
    subprocess.run(["sh", "-c", "sleep 21 >/dev/null & exit 0"])

def test_thread():
    threading.Thread(target=time.sleep, args=(2,), name="straggler").start()

def test_shared_memory():
    open("/dev/shm/tandem-leak-guard-test", "x").close()

def test_socket():
    kept.append(socket.socket())

def test_memfd():
    kept.append(os.memfd_create("pool"))

def test_clean():
    with socket.socket():
        subprocess.run(["true"])
"""
EXPECTED = {
    "test_process": r"process \d+: sleep 20$",
    "test_grandchild": r"process \d+: sleep 21$",
    "test_thread": r"thread straggler$",
    "test_shared_memory": r"/dev/shm/tandem-leak-guard-test$",
    "test_socket": r"1 more socket descriptors$",
    "test_memfd": r"1 more memfd descriptors$",
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, str]:
    """What the guard said after each of the leaky tests, by name."""
    folder = tmp_path_factory.mktemp("leaky")
    guard = (repository / "tests" / "conftest.py").read_text()
    (folder / "conftest.py").write_text(guard.replace("GRACE_S = 2.0", "GRACE_S = 0.2"))
    path = folder / "test_leaky.py"
    segment = Path("/dev/shm/tandem-leak-guard-test")
    segment.unlink(missing_ok=True)
    path.write_text(LEAKY_TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
    command += ["--import-mode=importlib", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, cwd=repository)
    segment.unlink()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "7 passed" in done.stdout
    found = re.findall(r"^_+ ERROR at teardown of (\w+) _+\nleft behind: (.*)$", done.stdout, re.M)
    return dict(found)


@pytest.mark.parametrize("name", EXPECTED)
def test_leak_is_found(name: str, errors: dict[str, str]) -> None:
    assert re.search(EXPECTED[name], errors[name])


def test_clean_test_is_not_blamed(errors: dict[str, str]) -> None:
    """As the last test it carries the session's finding: the two descriptors that were kept."""
    assert errors["test_clean"].endswith(
        "1 more socket descriptors; 1 more memfd descriptors; /dev/shm/tandem-leak-guard-test"
    )
    assert "process" not in errors["test_clean"]
