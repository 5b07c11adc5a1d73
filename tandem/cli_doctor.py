"""`tandem doctor`: looks at this host, at its transports, and at a running deployment."""

import argparse
import asyncio
import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import zmq

from tandem.checks import Check, render_checks
from tandem.child_process import child_environment
from tandem.cli_keys import keyring
from tandem.client import Client
from tandem.doctor import (
    OPTIONAL,
    REQUIRED,
    HostFacts,
    Reached,
    check_deployment,
    check_host,
    check_transports,
)
from tandem.errors import TandemError, UnavailableError
from tandem.messages.membership import NodeStatus
from tandem.sampling import SamplingParams
from tandem.status import query_status

MEASURE_S = 20.0
DIAL_S = 2.0
NUM_REQUESTS = 8
MAX_TOKENS = 2  # the second is another node's
ANSWER_S = 20.0
BEAT_S = 1.0  # nodes tell the coordinator twice per second
SHARED_MEMORY = Path("/dev/shm")
CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")


class _Speed(msgspec.Struct):
    transport: str
    bytes_per_s: float


def run(args: argparse.Namespace) -> int:
    """Exit status: 0 where all is well or doubtful, 1 where something fails."""
    checks = check_host(gather_facts())
    _progress("measuring transports")
    checks += measure_transports()
    if args.gateway:
        _progress(f"asking {args.gateway} for answers")
        checks.append(meet(args))
    if args.coordinator:
        _progress(f"asking {args.coordinator}")
        checks += asyncio.run(look_at(args))
    _progress("")
    if args.json:
        print(msgspec.json.encode({"checks": checks}).decode())
    else:
        print(render_checks(checks))
    return 1 if any(check.status == "fail" for check in checks) else 0


def gather_facts() -> HostFacts:
    """This host; nothing heavy is imported, the device is asked by its driver's own tool."""
    gpus, driver = _gpus()
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    shared = os.statvfs(SHARED_MEMORY) if SHARED_MEMORY.exists() else None
    return HostFacts(
        python=f"{platform.python_version()} on {platform.platform()}",
        versions={name: _version(name) for name in (*REQUIRED, *OPTIONAL)},
        libzmq=zmq.zmq_version(),
        has_curve=bool(zmq.has("curve")),
        gpus=gpus,
        driver=driver,
        num_cpus=len(os.sched_getaffinity(0)),
        free_memory_bytes=memory,
        shared_memory_bytes=shared.f_bavail * shared.f_frsize if shared else 0,
        max_descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        clock_source=CLOCK_SOURCE.read_text().strip() if CLOCK_SOURCE.exists() else None,
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> tuple[list[str], str | None]:
    """Names of devices, and the driver's version."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [], None
    command = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return [], None
    rows = [line.split(",") for line in done.stdout.splitlines() if "," in line]
    if done.returncode or not rows:
        return [], None
    return [row[0].strip() for row in rows], rows[0][-1].strip()


def measure_transports() -> list[Check]:
    """By a process of its own, as nodes do it; see `kv_transfer.loopback`."""
    command = [sys.executable, "-P", "-m", "kv_transfer"]
    env = child_environment(os.environ, 1)
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=MEASURE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return [Check("transports", "fail", f"not measured within {MEASURE_S:g} s")]
    if done.returncode:
        lines = done.stderr.splitlines() or ["no word"]
        return [Check("transports", "fail", lines[-1], "nodes of this host cannot exchange pages")]
    speeds = [msgspec.json.decode(line, type=_Speed) for line in done.stdout.splitlines()]
    return check_transports({speed.transport: speed.bytes_per_s for speed in speeds})


def meet(args: argparse.Namespace) -> Check:
    """A few requests at once, so that nodes which have not met do, and tell of it."""
    began_at = time.perf_counter()
    try:
        with Client(args.gateway, connect_timeout_s=5.0, keys=args.keys) as client:
            answers = client.generate(
                [f"count {number}" for number in range(2, 2 + NUM_REQUESTS)],
                progress=False,
                return_exceptions=True,
                params=SamplingParams(max_tokens=MAX_TOKENS),
                deadline_s=ANSWER_S,
            )
    except (TandemError, ValueError) as error:
        return Check("requests", "fail", str(error))
    failed = [str(answer) for answer in answers if isinstance(answer, TandemError)]
    if failed:
        return Check("requests", "fail", f"{len(failed)} of {NUM_REQUESTS} failed: {failed[0]}")
    seconds = time.perf_counter() - began_at
    time.sleep(BEAT_S)
    return Check("requests", "ok", f"{NUM_REQUESTS} of {MAX_TOKENS} tokens took {seconds:.2f} s")


async def look_at(args: argparse.Namespace) -> list[Check]:
    """The deployment of a coordinator."""
    try:
        status = await query_status(args.coordinator, keyring(args, "operator"))
    except UnavailableError as error:
        return [Check("coordinator", "fail", str(error))]
    coordinator = Check("coordinator", "ok", f"{args.coordinator} answers")
    return [coordinator, *check_deployment(status, await dial_all(status.nodes))]


async def dial_all(nodes: Sequence[NodeStatus]) -> list[Reached]:
    """Whether the nodes' control ports can be reached from here."""
    return list(await asyncio.gather(*(dial(node.control_address) for node in nodes)))


async def dial(address: str) -> Reached:
    """Open a connection, and close it."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    began_at = time.perf_counter()
    try:
        async with asyncio.timeout(DIAL_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except TimeoutError:
        return Reached(address, f"no answer within {DIAL_S:g} s")
    except (OSError, ValueError, socket.gaierror) as error:
        return Reached(address, str(error))
    milliseconds = (time.perf_counter() - began_at) * 1000
    writer.close()
    return Reached(address, None, milliseconds)


def _progress(text: str) -> None:
    """What is being done, on one line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
