"""`scripts/demo`: four processes, one prompt, its answer, its timeline, the state of everything."""

import argparse
import asyncio
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tandem.addresses import COORDINATOR_PORT, DASHBOARD_PORT, GATEWAY_PORT, HTTP_PORT
from tandem.child_process import PACKAGES_FOLDER
from tandem.cli_up import choose_port
from tandem.client import Client
from tandem.errors import TandemError
from tandem.launch import ClusterError, LocalCluster
from tandem.messages.membership import ClusterStatus
from tandem.sampling import SamplingParams
from tandem.status import query_status, render_status
from tandem.tables import render_timeline

DEFAULT_PROMPT = "def fibonacci(n):"
DEFAULT_MODEL = PACKAGES_FOLDER / "models" / "demo"
MAX_TOKENS = 160
HEARTBEAT_S = 0.6
HEARTBEATS_S = 2.0


class StartupLines:
    """Shows what processes print until they are ready, with their name and the time."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._is_starting = True
        self._lock = threading.Lock()

    def __call__(self, name: str, line: str) -> None:
        with self._lock:
            if self._is_starting and line.strip():
                seconds = time.monotonic() - self._started
                print(f"{seconds:6.1f} s  {name:<11}  {line}", flush=True)

    def end(self) -> None:
        """From now on the terminal belongs to the answer; logs go on in files."""
        with self._lock:
            self._is_starting = False


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 where the answer was complete and all processes ended by themselves."""
    args = make_parser().parse_args(argv)
    started = time.monotonic()
    lines = StartupLines(started)
    try:
        cluster = LocalCluster(
            model=args.model,
            coordinator_port=choose_port(None, COORDINATOR_PORT),
            gateway_port=choose_port(None, GATEWAY_PORT),
            http_port=choose_port(None, HTTP_PORT),
            dashboard_port=choose_port(None, DASHBOARD_PORT),
            sink=lines,
            drain_s=10.0,
        )
        cluster.start()
        lines.end()
        try:
            show_answer(cluster, args.prompt, args.max_tokens, started)
            print(f"\n{render_status(quiet_status(cluster))}")
            print(f"\n{doors(cluster, args.model)}")
            if args.keep:
                wait_for_interrupt(cluster)
        finally:
            killed = cluster.stop()
    except (ClusterError, TandemError, ValueError) as error:
        print(f"\nscripts/demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nscripts/demo: interrupted", file=sys.stderr)
        return 130
    failed = [name for name, p in cluster.processes.items() if p.exit_status != 0]
    if killed or failed:
        print(f"\nscripts/demo failed: {', '.join(failed)} did not end cleanly; logs in "
              f"{cluster.run_dir}", file=sys.stderr)  # fmt: skip
        return 1
    print(f"\nStopped cleanly after {time.monotonic() - started:.1f} s")
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Flags of the demo."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Starts a coordinator, a gateway, a prefill node and a decode node with the "
        "model in models/demo (it writes Python), and streams an answer.",
    )
    parser.add_argument("prompt", nargs="?", default=DEFAULT_PROMPT, help="default: %(default)s")
    parser.add_argument("--model", default=str(DEFAULT_MODEL), help="default: %(default)s")
    parser.add_argument(
        "--max-tokens", type=int, default=MAX_TOKENS, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--keep", action="store_true", help="leave it running until Ctrl-C")
    return parser


def show_answer(cluster: LocalCluster, prompt: str, max_tokens: int, started: float) -> None:
    """Stream the answer behind its prompt, then its timeline. Raises TandemError."""
    print(f"\nReady after {time.monotonic() - started:.1f} s. The answer:\n\n{prompt}", end="")
    with Client(cluster.gateway_address) as client:
        stream = client.submit(prompt, params=SamplingParams(max_tokens=max_tokens))
        first_s: float | None = None
        for chunk in stream:
            first_s = first_s or time.monotonic() - started
            print(chunk.text, end="", flush=True)
        result = stream.result
    print("\n\nThe request:\n")
    print(render_timeline(result.timeline, result.usage))
    if first_s is not None:
        print(f"first token {first_s:.1f} s after the start of the four processes")


def quiet_status(cluster: LocalCluster) -> ClusterStatus:
    """The state once nodes and gateway have reported the end of the request."""
    deadline = time.monotonic() + HEARTBEATS_S
    while True:
        time.sleep(HEARTBEAT_S)
        status = asyncio.run(query_status(cluster.coordinator_address))
        num_busy = sum(node.load.num_requests for node in status.nodes if node.load)
        num_live = sum(gateway.num_live_requests for gateway in status.gateways)
        num_draining = sum(node.load.pages.draining for node in status.nodes if node.load)
        if not (num_busy or num_live or num_draining) or time.monotonic() > deadline:
            return status


def doors(cluster: LocalCluster, model: str) -> str:
    """Where to look at the deployment while it runs, and how to ask it over HTTP."""
    body = f'{{"model": "{Path(model).name}", "prompt": "class Stack:", "max_tokens": 40}}'
    return (
        f"Dashboard     {cluster.dashboard_address}   (while it runs: --keep)\n"
        f"OpenAI's API  curl {cluster.http_address}/v1/completions \\\n"
        f"                -H 'Content-Type: application/json' -d '{body}'"
    )


def wait_for_interrupt(cluster: LocalCluster) -> None:
    """Say how to use the deployment, and return on Ctrl-C. Raises ClusterError on a death."""
    tandem = Path(sys.executable).parent / "tandem"
    print(
        f"\nRunning until Ctrl-C (logs in {cluster.run_dir}). In another terminal:\n"
        f'  {tandem} generate --gateway {cluster.gateway_address} "class Stack:"\n'
        f"  {tandem} top --dashboard {cluster.dashboard_address}\n"
        f"  {tandem} status --coordinator {cluster.coordinator_address}\n"
        f'  from tandem import Client; Client("{cluster.gateway_address}")',
        flush=True,
    )
    try:
        while not cluster.dead():
            time.sleep(0.2)
    except KeyboardInterrupt:
        print("\nDraining", flush=True)
        return
    raise ClusterError(cluster.explain_death(cluster.dead()[0]))


if __name__ == "__main__":
    sys.exit(main())
