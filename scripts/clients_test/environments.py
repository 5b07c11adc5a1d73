"""Environments of the clients: made once, each with a stamp of what is in it."""

import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(".cache/clients")


@dataclass(frozen=True, slots=True)
class Environment:
    """A name, and what pip installs."""

    name: str
    packages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where it is."""
        return FOLDER / self.name

    def program(self, name: str) -> Path:
        """One of its commands."""
        return self.folder / "bin" / name

    def make(self) -> None:
        """Install what is missing. Raises CalledProcessError."""
        stamp, wanted = self.folder / "tandem-packages", "\n".join(self.packages)
        if stamp.exists() and stamp.read_text() == wanted:
            return
        print(f"installing {' '.join(self.packages)} into {self.folder} ...", flush=True)
        if not self.program("python").exists():
            venv.create(self.folder, with_pip=True)
        command = [str(self.program("python")), "-m", "pip", "install", "--quiet", *self.packages]
        subprocess.run(command, check=True, stdout=sys.stderr)
        stamp.write_text(wanted)

    def versions(self) -> dict[str, str]:
        """Of everything in it, by name."""
        command = [str(self.program("python")), "-m", "pip", "list", "--format", "freeze"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return dict(line.split("==") for line in done.stdout.splitlines() if line.count("==") == 1)


ALL = Environment(
    # litellm's handling of tools imports mcp, which it does not ask for.
    "all",
    ("openai>=2,<3", "litellm", "mcp", "langchain-openai", "instructor", "llm-comply"),
)
OPENAI_3 = Environment("openai3", ("openai>=3,<4",))
SCHEMATHESIS = Environment("schemathesis", ("schemathesis>=4,<5",))
