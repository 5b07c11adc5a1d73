"""`scripts/test_clients`: other people's clients against one deployment of the demo model."""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scripts.clients_test import conformance
from scripts.clients_test.environments import ALL, OPENAI_3, SCHEMATHESIS, Environment
from tandem.launch import LocalCluster

LIMIT_S = 600
# At its default of 0.8 2 of 16 answers of the demo model went on to the end of its context, and
# checks of clients want them to stop.
TEMPERATURE = 1.0
Results = list[tuple[str, str | None]]  # a case, and why it failed


@dataclass(frozen=True, slots=True)
class Suite:
    """A client's checks; `package` is what is printed with its version."""

    name: str
    package: str
    environment: Environment
    run: Callable[[Environment, str], Results]


def run_program(name: str) -> Callable[[Environment, str], Results]:
    """A program of ours, in the client's environment."""

    def run(environment: Environment, gateway: str) -> Results:
        module = f"scripts.clients_test.programs.{name}_program"
        command = [str(environment.program("python")), "-m", module, gateway]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        if done.returncode:
            return [(name, done.stderr[-500:])]
        results: Results = [(case, why) for case, why in json.loads(done.stdout.splitlines()[-1])]
        return results

    return run


SUITES = (
    Suite("openai-2", "openai", ALL, run_program("openai")),
    Suite("openai-3", "openai", OPENAI_3, run_program("openai")),
    Suite("litellm", "litellm", ALL, run_program("litellm")),
    Suite("langchain", "langchain-openai", ALL, run_program("langchain")),
    Suite("instructor", "instructor", ALL, run_program("instructor")),
    Suite("llm-comply", "llm-comply", ALL, conformance.run_llm_comply),
)


def fuzzing(num_cases: int) -> Suite:
    """Odd calls, so many of every endpoint."""
    run = partial(conformance.run_schemathesis, num_cases=num_cases)
    return Suite("schemathesis", "schemathesis", SCHEMATHESIS, run)


@contextlib.contextmanager
def deployed(gateway: str | None) -> Iterator[str]:
    """The gateway's HTTP address: the one given, or of a deployment of the demo model."""
    if gateway is not None:
        yield gateway.rstrip("/")
        return
    with tempfile.TemporaryDirectory(prefix="tandem-") as folder:
        model = Path(folder) / "demo"
        shutil.copytree("models/demo", model)
        defaults = json.loads((model / "generation_config.json").read_text())
        changed = json.dumps(defaults | {"temperature": TEMPERATURE})
        (model / "generation_config.json").write_text(changed)
        with LocalCluster(model=str(model)) as cluster:
            yield cluster.http_address


def chosen_suites(only: str | None, *, with_fuzzing: bool, num_cases: int) -> Sequence[Suite]:
    """Raises SystemExit for a name that is none."""
    everything = (*SUITES, fuzzing(num_cases))
    known = {suite.name: suite for suite in everything}
    if only is None:
        return everything if with_fuzzing else SUITES
    names = only.split(",")
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"--only knows {', '.join(known)}, not {', '.join(unknown)}")
    return [known[name] for name in names]


def main() -> int:
    """Exit status: 0 where every case passed."""
    parser = argparse.ArgumentParser(prog="scripts/test_clients")
    parser.add_argument("--only", metavar="NAME,NAME")
    parser.add_argument("--schemathesis", action="store_true")
    parser.add_argument("--gateway", metavar="HTTP_ADDRESS")
    parser.add_argument("--cases", type=int, default=2000, metavar="NUM")
    flags = parser.parse_args()
    suites = chosen_suites(flags.only, with_fuzzing=flags.schemathesis, num_cases=flags.cases)
    for environment in {suite.environment.name: suite.environment for suite in suites}.values():
        environment.make()
    os.environ.update(OPENAI_API_KEY="none", LITELLM_LOCAL_MODEL_COST_MAP="True")
    num_failed = 0
    with deployed(flags.gateway) as gateway:
        for suite in suites:
            began = time.monotonic()
            results = suite.run(suite.environment, gateway)
            version = suite.environment.versions().get(suite.package, "?")
            failed = [(case, why) for case, why in results if why is not None]
            num_failed += len(failed)
            verdict = f"{len(results) - len(failed)} of {len(results)}"
            took_s = time.monotonic() - began
            print(f"{suite.name:12} {version:10} {verdict:>10} passed {took_s:6.1f} s", flush=True)
            for case, why in failed:
                print(f"    {case}: {why}")
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
