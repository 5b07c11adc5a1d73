"""Hand-off between two processes on one device: rates, exposed time, order, deaths, stalls."""

import json
import select
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks.gpu_all.attempts import Attempt, one_by_one
from benchmarks.gpu_all.setting import Setting, Table

Json = Any  # what a line of JSON holds
ANSWER_S = 45.0
ROUNDS = 12


class Process:
    """A `handoff_peer`, started; it ends with its input, or is ended."""

    def __init__(self, setting: Setting, end: socket.socket) -> None:
        command = [sys.executable, "-m", "benchmarks.gpu_all.handoff_peer"]
        self.process = subprocess.Popen(
            [*command, str(end.fileno()), setting.device.type],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            pass_fds=(end.fileno(),),
        )

    def tell(self, *command: Json) -> None:
        """Without waiting for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")

    def answer(self) -> Json:
        """To what was told first. RuntimeError where none comes."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], ANSWER_S)[0]:
            raise RuntimeError(f"no answer within {ANSWER_S:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with status {self.process.wait(20)}")
        return json.loads(line)

    def ask(self, *command: Json) -> Json:
        """Tell and wait."""
        self.tell(*command)
        return self.answer()

    def kill(self) -> None:
        """As a crash: nothing is released by it."""
        self.process.kill()
        self.process.wait(20)

    def end(self) -> None:
        """Close its input, and wait; what does not end is ended."""
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
        except (BrokenPipeError, ValueError):
            self.process.wait(20)


@contextmanager
def pair(setting: Setting) -> Iterator[tuple[Process, Process]]:
    """(writer, owner), each with the other's pool open."""
    ends = socket.socketpair()
    processes = [Process(setting, end) for end in ends]
    for end in ends:
        end.close()
    try:
        for process in processes:
            process.answer()
        handles = [process.ask("export") for process in processes]
        for process, theirs in zip(processes, reversed(handles), strict=True):
            process.ask("open", *theirs)
        yield processes[0], processes[1]
    finally:
        for process in processes:
            process.end()


def run(setting: Setting) -> Iterator[Table]:
    """One pair for all that needs no death, one pair for each death."""
    yield from one_by_one(attempts(setting))


def attempts(setting: Setting) -> Iterator[Attempt]:
    """Each while its processes are there."""
    with pair(setting) as (writer, owner):
        yield "rates", partial(rates, setting, writer)
        yield "exposed", partial(exposed, setting, writer, owner)
        yield "stalls", partial(stalls, setting, writer, owner)
    yield "deaths", partial(deaths, setting)


def rates(setting: Setting, writer: Process) -> Table:
    """Of 8k tokens."""
    shape = setting.shape
    num_bytes = setting.pick(8192, 64) * shape.num_layers * shape.kv_row * setting.dtype.itemsize
    rows, figures = [], {}
    for name, seconds in writer.ask("rates").items():
        moved = num_bytes // (shape.num_layers if "one layer" in name else 1)
        share = 2 * moved / seconds / 1e9 / setting.copy_gb_s
        gb_s = moved / seconds / 1e9
        rows.append((name, f"{seconds * 1e3:.3f}", f"{gb_s:.0f}", f"{share:.0%}"))
        figures[name] = {"ms": seconds * 1e3, "gb_s": gb_s}
    header = ("8k tokens", "device ms", "GB/s of KV", "of copy (read plus write)")
    notes = (
        "target: page kernel 0.60 ms; rope_write moves q besides, so only its difference counts",
    )
    return Table("Hand-off rates", header, rows, figures, notes)


def exposed(setting: Setting, writer: Process, owner: Process) -> Table:
    """From the first byte written to the owner's read of it; order under load by the event."""
    shown, wrong = [], 0.0
    for index in range(setting.pick(ROUNDS, 2)):
        owner.tell("receive", float(index + 1))
        begin = writer.ask("send", float(index + 1), 0)
        bad, there_at = owner.answer()
        shown.append((there_at - begin) * 1e3)
        wrong += bad
    late_wrong = 0.0
    for index in range(setting.pick(ROUNDS, 2)):
        owner.tell("receive", float(-index - 1))
        writer.ask("send", float(-index - 1), setting.pick(40, 1))
        late_wrong += owner.answer()[0]
    median = statistics.median(shown[1:])
    rows = [
        ("exposed, 8k tokens by page kernel and event", f"{median:.3f} ms"),
        ("slowest of them", f"{max(shown[1:]):.3f} ms"),
        ("wrong numbers read", f"{wrong:.0f}"),
        ("wrong numbers read, writer 40 products behind", f"{late_wrong:.0f}"),
    ]
    figures = {"exposed_ms": median, "wrong": wrong + late_wrong}
    if wrong + late_wrong:
        rows.append(("WRONG", "the event did not order the other process's reads"))
    notes = ("target: 1.0 ms with the notice",)
    return Table("Hand-off, exposed", ("what", "measured"), rows, figures, notes)


def stalls(setting: Setting, writer: Process, owner: Process) -> Table:
    """What time-slicing with a process of large products does to a step of some 0.5 ms."""
    seconds = setting.pick(2.0, 0.05)
    alone = owner.ask("steps", seconds)
    writer.tell("prefill", 2 * seconds)
    writer.answer()
    beside = owner.ask("steps", seconds)
    writer.answer()
    rows = [
        (name, *(f"{ms:.2f}" for ms in found))
        for name, found in (("alone", alone), ("beside prefill", beside))
    ]
    figures = {"step_alone_ms": alone, "step_beside_ms": beside}
    header = ("decode-like step on the shared GPU", "median ms", "p99 ms", "largest ms")
    return Table("Time slices", header, rows, figures)


def deaths(setting: Setting) -> Table:
    """SIGKILL of the writer in the middle of a write, and of the owner."""
    rows, figures = [], {}
    with pair(setting) as (writer, owner):
        writer.tell("flood")
        writer.answer()
        writer.kill()
        settled_s, changed = owner.ask("clear_and_watch", setting.pick(1.0, 0.05))
        fine = owner.ask("alive")
        verdict = "whole" if fine and changed == 0 else f"WRONG: {changed:.0f} numbers changed"
        rows.append(("writer killed: the owner", f"{verdict}, idle after {settled_s * 1e3:.0f} ms"))
        figures["writer_killed"] = {"changed": changed, "alive": fine, "settled_s": settled_s}
    with pair(setting) as (writer, owner):
        writer.tell("flood")
        writer.answer()
        owner.kill()
        try:
            select.select([], [], [], setting.pick(2.0, 0.1))
            still = writer.process.poll() is None
            verdict = "goes on" if still else f"ended with status {writer.process.returncode}"
        finally:
            writer.kill()
        rows.append(("owner killed: the writer", verdict))
        figures["owner_killed"] = {"writer_goes_on": still}
    return Table("Deaths", ("who", "what became of the other"), rows, figures)
