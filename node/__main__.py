"""Composition root of a node process: device, pages, guests, sockets, threads.

`python -m prefill_node` and `python -m decode_node` start the same node with other role weights.
"""

import asyncio
import importlib
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import uvloop
import zmq.asyncio

from decode_node.guest import DecodeGuest
from decode_node.preemption import Preemption, PreemptionOptions, Swap
from kv_transfer.cuda_driver import CudaDriver
from kv_transfer.cuda_ipc import MPS_ADVICE, CudaPool
from kv_transfer.exchange import BulkExchange
from kv_transfer.incoming import IncomingTransfers
from kv_transfer.outgoing import OutgoingTransfers
from kv_transfer.shared_memory import SharedPool
from node.checks import check
from node.config import NodeConfig
from node.core import Limits, NodeCore
from node.device import Device
from node.emitter import Emitter
from node.growth import Overcommit
from node.kv_events import CacheWatch
from node.ledger import PageLedger
from node.loop import StepLoop
from node.membership import Membership
from node.page_store import HostPageStore, PageStore, measure_copy
from node.peers import Owners
from node.resident import Resident
from node.shell import ALLOWED, COORDINATOR_MESSAGES, PEER_MESSAGES, NodeShell
from node.state import NodeIdentity, NodeState
from prefill_node.role import SharedPrefill
from scheduling.batch.catalogue import is_steady_policy, make_batch_policy
from scheduling.batch.options import split_options
from scheduling.costs import UNKNOWN_COSTS
from scheduling.prefill.catalogue import make_prefill_policy
from scheduling.views import Services
from tandem.codec import require_readable
from tandem.config import load_config
from tandem.event_log import EventLog, open_log, record
from tandem.keys import COORDINATOR, Keyring
from tandem.messages.common import NAMES_ADVICE
from tandem.messages.membership import NodeHello, RoleWeights
from tandem.service import Log
from tandem.sockets import Link, Server, keyring_or_loopback, peer_identity

RECORDED = ("handle", "tick_guests", "plan", "settle", "flush", "cache_changes")
log = logging.getLogger("tandem.node")
# A step's thread that comes back from a kernel waits for the Python of the others at most so long.
# With the usual 5 ms, 0.6 of the 4.2 ms of a small model's step went by so; with 0.5 a node with
# two threads had 894 and 903 tokens/s instead of 814 to 854 (35 M, batch of 32, busy host).
SWITCH_S = 0.0005


def build_device(
    config: NodeConfig, node_id: str, incarnation: int
) -> tuple[Device, SharedPool | CudaPool | None]:
    """The device side and the memory of its pages. ValueError with advice where it does not fit."""
    pools: list[SharedPool | CudaPool] = []
    is_gpu = config.device.startswith("cuda")
    driver = open_gpu(config) if is_gpu else None

    def allocate(num_bytes: int) -> memoryview | CudaPool:
        if driver is not None:
            pools.append(pool := CudaPool(driver, num_bytes))
            return pool
        pools.append(shared := SharedPool.create(num_bytes))
        return shared.buffer

    # By name: a node that computes nothing must not load torch, which takes seconds.
    module = "node.fake_device" if config.device == "fake" else "engine.device"
    build = importlib.import_module(module).build_device
    provide = None if is_gpu and driver is None else allocate
    device: Device = build(config, node_id, incarnation, provide)
    return device, pools[0] if device.is_shared else None


def open_gpu(config: NodeConfig) -> CudaDriver | None:
    """What shares the GPU's pages with other processes; None where they stay in this one.

    ValueError where they have to leave it and cannot.
    """
    if config.transport not in ("auto", "cuda_ipc"):
        problem = f"--transport {config.transport} is for host memory, GPUs have cuda_ipc"
    else:
        try:
            module = importlib.import_module("kv_transfer.cupy_driver")
            driver: CudaDriver = module.open_driver(config.device)
            if not driver.is_mps:
                return driver
            problem = MPS_ADVICE
        except ImportError as error:
            problem = f"{error}: pip install 'tandem-serve[cuda]'"
        except ValueError as error:
            problem = str(error)
    both = config.prefill_weight and config.decode_weight
    if config.transport == "cuda_ipc" or not both:
        raise ValueError(
            f"KV pages cannot leave {config.device} ({problem}): make that possible, or give this "
            "node both roles (--prefill-weight 1 --decode-weight 1 --transport auto)"
        )
    log.info("KV pages stay in this process: %s", problem)
    return None


def open_swap(
    config: NodeConfig, device: Device, pool: SharedPool | CudaPool | None
) -> Swap | None:
    """Host memory for the pages of preempted requests; None where they cannot be copied there."""
    if not isinstance(pool, SharedPool):
        if config.preemption == "swap":
            log.warning("pages on %s are not swapped but computed again", config.device)
        return None
    num_pages, page_bytes = device.runner.num_pages, device.identity.layout.page_bytes
    pages = np.frombuffer(pool.buffer, np.uint8, num_pages * page_bytes)
    store = HostPageStore(pages.reshape(num_pages, page_bytes))
    return make_swap(config, device.identity, store, measure_copy())


def make_swap(
    config: NodeConfig, identity: NodeIdentity, store: PageStore, bytes_per_s: float
) -> Swap:
    """As much as the operator gives."""
    return Swap(store, config.swap_bytes // identity.layout.page_bytes, bytes_per_s)


def compose_core(config: NodeConfig, device: Device, swap: Swap | None) -> NodeCore:
    """Both guests around one ledger, one policy over both."""
    identity = device.identity
    num_pages = device.runner.num_pages
    num_watermark_pages = 0 if config.reserve == "full" else int(config.page_watermark * num_pages)
    state = NodeState(
        identity,
        PageLedger(num_pages),
        Emitter(identity.node_id, identity.incarnation),
        Overcommit(config.reserve, num_watermark_pages),
    )
    services = Services(UNKNOWN_COSTS)

    def start_local(resident: Resident, now: float) -> None:
        prefill.start_local(resident, now)

    preemption = Preemption(
        state,
        swap,
        PreemptionOptions(config.preemption, config.num_step_tokens),
        start_local=start_local,
    )
    incoming = IncomingTransfers(state.pool, identity.layout, incarnation=identity.incarnation)
    decode = DecodeGuest(state, incoming, preemption, start_local=start_local)
    prefill = SharedPrefill(
        state,
        OutgoingTransfers(identity.layout.page_size),
        make_prefill_policy(config.prefill_policy, split_options(config.prefill_option, "prefill")),
        lookahead_tokens=4 * config.num_step_tokens,
        local=decode,
        services=services,
    )
    batch_options = split_options(config.batch_option)
    return NodeCore(
        state,
        prefill=prefill,
        decode=decode,
        policy=make_batch_policy(config.batch_policy, batch_options),
        is_steady=is_steady_policy(config.batch_policy, batch_options),
        limits=Limits(
            config.max_num_seqs,
            config.num_step_tokens,
            RoleWeights(prefill=config.prefill_weight, decode=config.decode_weight),
        ),
        services=services,
    )


def open_event_log(config: NodeConfig, device: Device, swap: Swap | None) -> EventLog | None:
    """Where the core's events and decisions are recorded, if the operator wants that."""
    return open_log(
        config.event_log,
        role="node",
        name=device.identity.node_id,
        built_from=(
            config,
            device.identity,
            device.runner.num_pages,
            None if swap is None else swap.bytes_per_s,
        ),
    )


async def serve(
    config: NodeConfig,
    device: Device,
    pool: SharedPool | CudaPool | None,
    run_dir: Path,
    keys: Keyring | None,
) -> str | None:
    """Run until stopped or drained; returns what went wrong, if anything."""
    context = zmq.asyncio.Context()
    server: Server[object] = Server(context, PEER_MESSAGES, keys=keys, allowed=ALLOWED)
    listening = server.bind(config.host, config.port)
    address = listening.replace(config.host, config.advertised_host or config.host)
    coordinator = make_link(context, config, device.identity, keys)
    cache_watch = CacheWatch(config, device.identity, zmq.Context.shadow(context.underlying))
    exchange = make_exchange(config, device, pool, run_dir, encrypt=keys is not None)
    owners = Owners(
        context,
        exchange,
        node_id=device.identity.node_id,
        incarnation=device.identity.incarnation,
        offer=lambda event: steps.offer(event),
        insist=lambda event: shell.insist(event),
        load=lambda: steps.load(),
        keys=keys,
    )
    shell = NodeShell(
        server,
        coordinator,
        membership=Membership(make_hello(config, device, address)),
        owners=owners,
        exchange=exchange,
        drain_s=config.drain_s,
        device=config.device,
        schemas=device.schemas,
        watch_cache=cache_watch.changed,
    )
    swap = open_swap(config, device, pool)
    event_log = open_event_log(config, device, swap)
    core = record(compose_core(config, device, swap), event_log, RECORDED)
    steps = StepLoop(core, device.runner, post=shell.post, failed=shell.failed)
    shell.attach(steps)
    exchange.start(lambda event: steps.offer(event), shell.failed)
    steps.start()
    try:
        return await run_until_stopped(
            shell, steps, address=address, coordinator=config.coordinator
        )
    finally:
        steps.stop()
        if event_log is not None:
            event_log.close()
        exchange.close()
        server.close()
        coordinator.close()
        cache_watch.close()
        context.term()


def make_link(
    context: zmq.asyncio.Context, config: NodeConfig, identity: NodeIdentity, keys: Keyring | None
) -> Link[object]:
    """The socket to the coordinator."""
    return Link(
        context,
        COORDINATOR_MESSAGES,
        identity=peer_identity("node", identity.node_id, identity.incarnation),
        address=config.coordinator,
        keys=keys,
        server="/".join(COORDINATOR),
    )


def make_exchange(
    config: NodeConfig,
    device: Device,
    pool: SharedPool | CudaPool | None,
    run_dir: Path,
    *,
    encrypt: bool,
) -> BulkExchange:
    """The bulk side, not yet started."""
    return BulkExchange(
        device.identity,
        pool,
        num_pages=device.runner.num_pages,
        transport=config.transport,
        host=config.host,
        advertised_host=config.advertised_host,
        run_dir=run_dir,
        encrypt_bulk=encrypt,
    )


async def run_until_stopped(
    shell: NodeShell, steps: StepLoop, *, address: str, coordinator: str
) -> str | None:
    """Announce readiness; the first signal drains, the second stops at once."""
    joined = asyncio.Event()
    running = asyncio.create_task(shell.run(joined))
    signals: list[int] = []

    def on_signal(number: int) -> None:
        signals.append(number)
        if len(signals) > 1:
            log.warning("stopping at once")
            running.cancel()
        else:
            shell.start_drain(f"{signal.Signals(number).name}; a second one stops at once")

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    announcing = asyncio.create_task(announce(joined, address, coordinator))
    try:
        await running
    except asyncio.CancelledError:
        log.warning("stopped before the drain ended")
        return "requests were left behind" if not steps.is_idle else None
    finally:
        announcing.cancel()
        log.info("pages at the end: %s", steps.load().pages)
    return shell.error


async def announce(joined: asyncio.Event, address: str, coordinator: str) -> None:
    """Print `ready node ADDRESS` once admitted; say what is being waited for until then."""
    while True:
        try:
            await asyncio.wait_for(joined.wait(), 5.0)
        except TimeoutError:
            log.warning("no answer from the coordinator at %s yet; still trying", coordinator)
        else:
            print(f"ready node {address}", flush=True)
            return


def make_hello(config: NodeConfig, device: Device, address: str) -> NodeHello:
    """What the coordinator must know of this node. ValueError where it could not be read there."""
    hello = NodeHello(
        node_id=device.identity.node_id,
        incarnation=device.identity.incarnation,
        control_address=address,
        weights=RoleWeights(prefill=config.prefill_weight, decode=config.decode_weight),
        model=device.identity.model,
        layout=device.identity.layout,
        num_pages=device.runner.num_pages,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.num_step_tokens,
        device=config.device,
    )
    require_readable(hello, NAMES_ADVICE)
    return hello


def main() -> int:
    """Start, serve, drain."""
    started = time.perf_counter()
    sys.setswitchinterval(SWITCH_S)
    prog = f"python -m {Path(sys.argv[0]).parent.name}"
    config = load_config(NodeConfig, sys.argv[1:], prog=prog, section="node", check=check)
    lines = Log(config, prog.rpartition(" ")[2].removesuffix("_node"), config.name)
    try:
        keys = keyring_or_loopback(
            config.keys,
            "node",
            config.name,
            host=config.host,
            allow_unauthenticated=config.allow_unauthenticated,
        )
        make_batch_policy(config.batch_policy, split_options(config.batch_option))
        make_prefill_policy(config.prefill_policy, split_options(config.prefill_option, "prefill"))
        # Grows over restarts: the higher one has the name, in whatever order they are heard.
        incarnation = (time.time_ns() // 1_000_000 << 21) | secrets.randbits(21)
        made_up = f"{socket.gethostname()[:32]}-{os.getpid()}"
        node_id = config.name or (made_up if keys is None else keys.name)
        lines.name(node_id)
        device, pool = build_device(config, node_id, incarnation)
        log.info("%s", device.description)
        log.info("%-20s %6.2f s", "start-up in all", time.perf_counter() - started)
        with tempfile.TemporaryDirectory(prefix="tandem-") as private:
            problem = uvloop.run(serve(config, device, pool, Path(config.run_dir or private), keys))
    except ValueError as error:
        problem = str(error)
    if problem is not None:
        log.error("%s", problem)
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    # Everything of ours is closed; the interpreter's own end (torch, numba) took 1.4-2.4 s of CPU.
    os._exit(status)
