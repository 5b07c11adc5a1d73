"""Composition root of a node process: device, pages, guests, sockets, threads.

`python -m prefill_node` and `python -m decode_node` start the same node with other role weights.
"""

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import uvloop
import zmq.asyncio

from decode_node.guest import DecodeGuest
from engine.build import BuiltRunner, EngineOptions, build_runner
from kv_transfer.exchange import BulkExchange
from kv_transfer.incoming import IncomingTransfers
from kv_transfer.outgoing import OutgoingTransfers
from kv_transfer.shared_memory import SharedPool
from node.config import NodeConfig
from node.core import Limits, NodeCore
from node.emitter import Emitter
from node.ledger import PageLedger
from node.loop import StepLoop
from node.membership import Membership
from node.peers import Owners
from node.shell import COORDINATOR_MESSAGES, PEER_MESSAGES, NodeShell
from node.state import NodeIdentity, NodeState
from prefill_node.guest import PrefillGuest
from scheduling.batch_policies import make_batch_policy
from scheduling.prefill_policies import FifoPrefill
from tandem.codec import require_readable
from tandem.config import load_config
from tandem.messages.common import NAMES_ADVICE, ModelIdentity
from tandem.messages.membership import NodeHello, RoleWeights
from tandem.model_folder import (
    load_generation_defaults,
    load_model_config,
    resolve_model,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from tandem.sockets import Link, Server, peer_identity, require_loopback

log = logging.getLogger("tandem.node")


@dataclass(frozen=True, slots=True)
class Device:
    """The device side, built before anything listens."""

    built: BuiltRunner
    pool: SharedPool | None
    identity: NodeIdentity


def report_phase(name: str, seconds: float) -> None:
    """Named start-up phases, for people and the launcher."""
    log.info("%-20s %6.2f s", name, seconds)


class LoadProgress:
    """Logs how far loading weights is, at most once per second."""

    def __init__(self) -> None:
        self._next_at = time.monotonic() + 1.0

    def __call__(self, num_done: int, num_total: int) -> None:
        """Bytes loaded, bytes in all."""
        if time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + 1.0
            log.info("loading weights: %d %%", 100 * num_done // max(1, num_total))


def build_device(config: NodeConfig, node_id: str, incarnation: int) -> Device:
    """Load the model and allocate pages. ValueError with advice where something does not fit."""
    is_host = config.device == "cpu"
    if not (is_host or (config.prefill_weight and config.decode_weight)):
        raise ValueError(
            f"KV cannot be moved out of {config.device} memory yet: give this node both roles "
            "(--prefill-weight 1 --decode-weight 1), or use --device cpu"
        )
    folder = resolve_model(config.model)
    model_config = load_model_config(folder)
    started = time.perf_counter()
    fingerprints = weights_fingerprint(folder), tokenizer_fingerprint(folder)
    report_phase("fingerprints", time.perf_counter() - started)
    pools: list[SharedPool] = []

    def allocate(num_bytes: int) -> memoryview:
        pools.append(SharedPool.create(num_bytes))
        return pools[0].buffer

    built = build_runner(
        folder,
        model_config,
        EngineOptions(
            device=config.device,
            dtype=config.dtype,
            numerics=config.numerics,
            page_size=config.page_size,
            num_pages=config.num_pages,
            memory_share=config.memory_share,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
        ),
        allocate=allocate if is_host else None,
        on_phase=report_phase,
        progress=LoadProgress(),
    )
    model = ModelIdentity(
        served_name=config.served_model_name or folder.resolve().name,
        weights_fingerprint=fingerprints[0],
        tokenizer_fingerprint=fingerprints[1],
        dtype=built.runner.layout.dtype,
        max_model_len=built.max_model_len,
        vocab_size=model_config.vocab_size,
    )
    identity = NodeIdentity(
        node_id=node_id,
        incarnation=incarnation,
        model=model,
        layout=built.runner.layout,
        eos_token_ids=load_generation_defaults(folder).eos_token_ids,
    )
    return Device(built, pools[0] if pools else None, identity)


def compose_core(config: NodeConfig, device: Device) -> NodeCore:
    """Both guests around one ledger, one policy over both."""
    identity = device.identity
    ledger = PageLedger(device.built.runner.num_pages)
    emitter = Emitter(identity.node_id, identity.incarnation)
    state = NodeState(identity, ledger, emitter)
    incoming = IncomingTransfers(ledger, identity.layout, incarnation=identity.incarnation)
    decode = DecodeGuest(
        state, incoming, start_local=lambda resident, now: prefill.start_local(resident, now)
    )
    prefill = PrefillGuest(
        state,
        OutgoingTransfers(identity.layout.page_size),
        FifoPrefill(),
        lookahead_tokens=4 * config.max_num_batched_tokens,
        local=decode,
    )
    return NodeCore(
        state,
        prefill=prefill,
        decode=decode,
        policy=make_batch_policy(config.batch_policy),
        limits=Limits(
            config.max_num_seqs,
            config.max_num_batched_tokens,
            RoleWeights(prefill=config.prefill_weight, decode=config.decode_weight),
        ),
    )


async def serve(config: NodeConfig, device: Device, run_dir: Path) -> str | None:
    """Run until stopped or drained; returns what went wrong, if anything."""
    identity = device.identity
    context = zmq.asyncio.Context()
    server: Server[object] = Server(context, PEER_MESSAGES)
    listening = server.bind(config.host, config.port)
    address = listening.replace(config.host, config.advertised_host or config.host)
    coordinator: Link[object] = Link(
        context,
        COORDINATOR_MESSAGES,
        identity=peer_identity("node", identity.node_id, identity.incarnation),
        address=config.coordinator,
    )
    exchange = BulkExchange(
        identity,
        device.pool,
        num_pages=device.built.runner.num_pages,
        transport=config.transport,
        host=config.advertised_host or config.host,
        run_dir=run_dir,
    )
    owners = Owners(
        context,
        exchange,
        node_id=identity.node_id,
        incarnation=identity.incarnation,
        offer=lambda event: steps.offer(event),
        insist=lambda event: shell.insist(event),
    )
    membership = Membership(make_hello(config, device, address))
    shell = NodeShell(server, coordinator, membership=membership, owners=owners, exchange=exchange)
    steps = StepLoop(
        compose_core(config, device), device.built.runner, post=shell.post, failed=shell.failed
    )
    shell.attach(steps)
    exchange.start(lambda event: steps.offer(event), shell.failed)
    steps.start()
    try:
        return await run_until_stopped(config, shell, steps, address)
    finally:
        steps.stop()
        exchange.close()
        server.close()
        coordinator.close()
        context.term()


async def run_until_stopped(
    config: NodeConfig, shell: NodeShell, steps: StepLoop, address: str
) -> str | None:
    """Announce readiness; the first signal drains, the second stops at once."""
    joined = asyncio.Event()
    running = asyncio.create_task(shell.run(joined))
    drains: list[asyncio.Task[bool]] = []

    def on_signal() -> None:
        if drains:
            log.warning("stopping at once")
            running.cancel()
        else:
            log.info("draining for up to %g s; Ctrl-C again stops at once", config.drain_s)
            drains.append(asyncio.create_task(shell.drain(config.drain_s)))

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    announcing = asyncio.create_task(announce(joined, address, config.coordinator))
    try:
        await running
    except asyncio.CancelledError:
        log.warning("stopped before the drain ended")
    finally:
        announcing.cancel()
    log.info("pages at the end: %s", steps.load().pages)
    if drains and drains[0].done() and not drains[0].result():
        return f"requests were left after {config.drain_s:g} s of draining"
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
        num_pages=device.built.runner.num_pages,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        device=config.device,
    )
    require_readable(hello, NAMES_ADVICE)
    return hello


def log_budget(device: Device) -> None:
    """The memory budget: weights, pages, tokens that fit."""
    budget = device.built.budget
    layout = device.identity.layout
    log.info(
        "memory: weights %.1f MiB, %d KV pages of %d tokens (%.1f MiB), %d tokens fit; ops %s",
        budget.weight_bytes / 2**20,
        budget.num_pages,
        layout.page_size,
        budget.num_pages * layout.page_bytes / 2**20,
        budget.num_pages * layout.page_size,
        device.built.ops_name,
    )


def main() -> int:
    """Start, serve, drain."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S"
    )
    started = time.perf_counter()
    prog = f"python -m {Path(sys.argv[0]).parent.name}"
    config = load_config(NodeConfig, sys.argv[1:], prog=prog, section="node")
    try:
        if not config.allow_unauthenticated:
            require_loopback(config.host)
        make_batch_policy(config.batch_policy)
        incarnation = secrets.randbits(62)
        node_id = config.name or f"{socket.gethostname()[:32]}-{os.getpid()}"
        device = build_device(config, node_id, incarnation)
        log_budget(device)
        report_phase("start-up in all", time.perf_counter() - started)
        with tempfile.TemporaryDirectory(prefix="tandem-") as private:
            problem = uvloop.run(serve(config, device, Path(config.run_dir or private)))
    except ValueError as error:
        problem = str(error)
    if problem is not None:
        log.error("%s", problem)
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    # Everything of ours is closed; the interpreter's own end (torch, numba) took 1.4-2.4 s of CPU.
    os._exit(status)
