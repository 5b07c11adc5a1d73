"""The processes of two hosts, each started in the network namespace of its host."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tandem.child_process import child_environment

PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Host:
    """`namespace` None: this process's own."""

    address: str
    namespace: str | None = None

    def command(self, program: Sequence[str]) -> list[str]:
        """The program, run on this host."""
        entered = [] if self.namespace is None else ["ip", "netns", "exec", self.namespace]
        return [*entered, *program]

    def cable(self, state: str) -> None:
        """Pull it (`down`) or put it back (`up`)."""
        link = ["ip", "link", "set", "tandem-cable", state]
        subprocess.run(self.command(link), check=True, timeout=10)


@dataclass(slots=True)
class Processes:
    """Named processes with a log each; `stop` ends them all."""

    folder: Path
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self, host: Host, module: str, name: str, flags: Sequence[str]) -> None:
        """`python -m module` there."""
        program = host.command([sys.executable, "-P", "-m", module, *flags])
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                program, env=_environment(), stdout=log, stderr=subprocess.STDOUT
            )

    def wait_until_ready(self) -> None:
        """Every process has said so. Raises ValueError with the log of one that has not."""
        give_up_at = time.monotonic() + PATIENCE_S
        for name, process in self.running.items():
            while b"ready " not in self.log(name):
                if process.poll() is not None or time.monotonic() > give_up_at:
                    raise ValueError(f"{name} is not ready:\n{self.log(name).decode()[-2000:]}")
                time.sleep(0.1)

    def log(self, name: str) -> bytes:
        """What it wrote."""
        return (self.folder / f"{name}.log").read_bytes()

    def kill(self, name: str) -> None:
        """At once. `ip netns exec` becomes the program, so that its pid is the program's."""
        self.running[name].kill()
        self.running.pop(name).wait(10)

    def stop(self) -> None:
        """Ask, then kill."""
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
                continue
            process.kill()
            process.wait(5)


def _environment() -> Mapping[str, str]:
    return child_environment(os.environ, 1)
