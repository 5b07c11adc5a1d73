"""Starts two hosts, disturbs them, compares every answer with the undisturbed one."""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.netns_test.hosts import Host, Processes
from tandem.async_client import AsyncClient
from tandem.errors import TandemError
from tandem.keys import KeyFolder, Keyring
from tandem.messages.membership import ClusterStatus
from tandem.sampling import SamplingParams
from tandem.status import query_status

MODEL = str(Path(__file__).resolve().parents[2] / "models/demo")
COORDINATOR, GATEWAY = "tcp://10.77.0.1:7300", "tcp://10.77.0.1:7301"
OWNERS = [
    ("gateway", "gateway"),
    *[("node", f"{role}-{i}") for role in ("prefill", "decode") for i in range(2)],
    ("client", "local"),
    ("operator", "local"),
]
PROMPTS = [f"def function_{i}(a, b):\n    " for i in range(12)]
NUM_TOKENS = 120
CABLE_PULLED_S = 6.0
Answers = list[tuple[int, ...] | str]


class Deployment:
    """All of it, with keys; `say` tells how it goes."""

    def __init__(self, folder: Path, here: Host, there: Host) -> None:
        self.here, self.there = here, there
        self.keys = folder / "keys"
        KeyFolder.complete(self.keys, OWNERS)
        self.processes = Processes(folder)

    def start(self) -> None:
        """Coordinator and gateway on the first host, a node of each role on both."""
        common = ("--keys", str(self.keys), "--model", MODEL, "--coordinator", COORDINATOR)
        listen = ("--host", self.here.address)
        flags = ("--keys", str(self.keys), *listen, "--port", "7300")
        self.processes.start(self.here, "coordinator", "coordinator", flags)
        gateway = (*common, *listen, "--port", "7301", "--name", "gateway")
        self.processes.start(self.here, "gateway", "gateway", gateway)
        for index, host in enumerate((self.here, self.there)):
            for role in ("prefill", "decode"):
                name = f"{role}-{index}"
                own = ("--name", name, "--host", host.address, "--port", "0", "--num-pages", "400")
                self.processes.start(host, f"{role}_node", name, (*common, *own))
        self.processes.wait_until_ready()

    def status(self) -> ClusterStatus:
        """As the coordinator sees it."""
        return asyncio.run(query_status(COORDINATOR, Keyring(self.keys, "operator")))

    def status_from_there(self) -> str:
        """`tandem status` on the other host."""
        flags = ["status", "--coordinator", COORDINATOR, "--keys", str(self.keys)]
        program = self.there.command([sys.executable, "-m", "tandem.cli", *flags])
        done = subprocess.run(program, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout if done.returncode == 0 else f"failed: {done.stderr}"

    def ask(self, disturb: Sequence[tuple[float, object]] = ()) -> Answers:
        """All prompts at once; `disturb` are (seconds after the start, call)."""
        return asyncio.run(self._ask(disturb))

    async def _ask(self, disturb: Sequence[tuple[float, object]]) -> Answers:
        async with AsyncClient(GATEWAY, keys=self.keys) as client:
            await client.wait_until_ready(30.0)
            answers = asyncio.gather(*(_answer(client, prompt) for prompt in PROMPTS))
            began = time.monotonic()
            for after_s, call in disturb:
                await asyncio.sleep(max(0.0, began + after_s - time.monotonic()))
                assert callable(call)
                await asyncio.to_thread(call)
            return await answers


async def _answer(client: AsyncClient, prompt: str) -> tuple[int, ...] | str:
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    try:
        stream = await client.submit(prompt, params=params)
        return (await stream.finish()).token_ids
    except TandemError as error:
        return f"{error.code}: {error}"


class Report:
    """A line per check."""

    def __init__(self) -> None:
        self.num_failed = 0
        self._began = time.monotonic()

    def check(self, name: str, problem: str | None) -> None:
        """`problem` None: it holds."""
        self.num_failed += problem is not None
        verdict = "ok" if problem is None else f"FAILED: {problem}"
        print(f"{time.monotonic() - self._began:6.1f} s  {name:<58} {verdict}", flush=True)


def differences(wanted: Answers, got: Answers) -> str | None:
    """How many answers are not the undisturbed ones, and the first of these."""
    wrong = [each for each, other in zip(got, wanted, strict=True) if each != other]
    return f"{len(wrong)} of {len(wanted)} answers differ: {str(wrong[0])[:200]}" if wrong else None


def idle_nodes(status: ClusterStatus) -> list[str]:
    """Nodes that made no step."""
    return [n.node_id for n in status.nodes if n.load is None or n.load.num_steps == 0]


def run(deployment: Deployment, report: Report) -> None:
    """All checks in order."""
    deployment.start()
    report.check("four nodes on two hosts are ready", None)
    wanted = deployment.ask()
    failed = [each for each in wanted if isinstance(each, str)]
    report.check(f"{len(PROMPTS)} streams of {NUM_TOKENS} tokens", failed[0] if failed else None)
    time.sleep(1.5)  # heartbeats tell of the last steps
    idle = idle_nodes(deployment.status())
    report.check("nodes of both hosts worked", f"idle: {', '.join(idle)}" if idle else None)
    told = deployment.status_from_there()
    report.check("tandem status from the other host", None if "decode-1" in told else told[-300:])
    pulled = [
        (0.3, lambda: deployment.there.cable("down")),
        (0.3 + CABLE_PULLED_S, lambda: deployment.there.cable("up")),
    ]
    got = deployment.ask(pulled)
    report.check(f"the cable is pulled for {CABLE_PULLED_S:g} s", differences(wanted, got))
    report.check("both nodes of the other host came back", _wait_for_nodes(deployment, 4))
    got = deployment.ask([(0.3, lambda: deployment.processes.kill("decode-1"))])
    report.check("the other host's decode node is killed", differences(wanted, got))
    report.check("answers afterwards", differences(wanted, deployment.ask()))


def _wait_for_nodes(deployment: Deployment, num_nodes: int) -> str | None:
    give_up_at = time.monotonic() + 15.0
    while True:
        names = [node.node_id for node in deployment.status().nodes]
        if len(names) == num_nodes:
            return None
        if time.monotonic() > give_up_at:
            return f"only {', '.join(names)}"
        time.sleep(0.5)


def main() -> int:
    """Exit status 1 where a check failed."""
    here, there = Host("10.77.0.1"), Host("10.77.0.2", sys.argv[1])
    report = Report()
    with tempfile.TemporaryDirectory(prefix="tandem-netns-") as folder:
        deployment = Deployment(Path(folder), here, there)
        try:
            run(deployment, report)
        except (ValueError, TandemError) as error:
            report.check("the deployment", str(error))
        finally:
            deployment.processes.stop()
        if report.num_failed:
            for name in deployment.processes.running:
                tail = deployment.processes.log(name).decode(errors="replace").splitlines()[-5:]
                print(f"--- {name}", *tail, sep="\n")
    return int(report.num_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
