"""The gateway's shell: a ROUTER for clients, a link to the coordinator, links to nodes, a clock."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq.asyncio

from gateway import wording
from gateway.actions import Action, CloseNode, NewRequest, ToClient, ToCoordinator, ToNode
from gateway.admission import Offer
from gateway.clients import Cut, Limits, Sessions
from gateway.config import GatewayConfig
from gateway.intake import Intake
from gateway.ledger import Identity, Ledger
from gateway.lengths import Lengths, make_lengths
from gateway.node_links import NodeLinks
from gateway.pool_view import PoolView
from gateway.tenant_file import TenantFile
from gateway.tokenize import Tokenization, Tokenizer
from tandem.codec import ProtocolError, require_readable
from tandem.event_log import open_log, record
from tandem.keys import COORDINATOR, Keyring, read_prefix_key
from tandem.messages.client import (
    CancelRequest,
    ClientPing,
    ClientPong,
    Done,
    Malformed,
    Received,
    Resume,
    Submit,
    ToGateway,
)
from tandem.messages.common import NAMES_ADVICE, ModelIdentity, NodeRef
from tandem.messages.placement import (
    GatewayHello,
    GatewayRefused,
    GatewayWelcome,
    ToGatewayFromCoordinator,
)
from tandem.messages.serving import PeerBeat
from tandem.rates import Rate
from tandem.sampling import GenerationDefaults
from tandem.service import run_until
from tandem.sockets import Link, RateLimited, Server, keyring_or_loopback, peer_identity

RECORDED = ("submit", "cancel", "end_all", "from_coordinator", "from_node", "tick")
TICK_S = 0.1
BEAT_S = 1.0
LAST_WORDS_S = 1.0  # how long clients may take to confirm the last ends
REREAD_S = 2.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the composition root read from the model folder."""

    identity: ModelIdentity
    defaults: GenerationDefaults
    tokenizer: Tokenizer


async def serve(
    config: GatewayConfig,
    model: ServedModel,
    *,
    stop: asyncio.Event,
    on_ready: Callable[[str], None],
) -> None:
    """Serve until `stop` is set; `on_ready` gets the address once the coordinator welcomed it.

    The coordinator's order to drain sets it too. Then requests in flight are finished; set once
    more, they are ended.
    Raises ValueError where it cannot listen, does not fit the deployment, or tenants are wrong.
    """
    keys = keyring_or_loopback(
        config.keys,
        "gateway",
        config.name,
        host=config.host,
        allow_unauthenticated=config.allow_unauthenticated,
    )
    tenants, lengths = TenantFile(config.tenants), make_lengths(config)
    context = zmq.asyncio.Context()
    gateway = None
    try:
        gateway = Gateway(context, config, model, stop, keys, tenants, lengths)
        address = gateway.bind()
        loops = gateway.loops(lambda: on_ready(address))
        await run_until(asyncio.Event(), gateway.drain(), *loops)
    finally:
        if gateway is not None:
            await gateway.close()
        lengths.close()
        context.destroy(linger=0)  # sockets that were open before another one failed, too


class Gateway:
    """Moves messages between sockets and the ledger; decides nothing. Lives on one event loop."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        config: GatewayConfig,
        model: ServedModel,
        stop: asyncio.Event,
        keys: Keyring | None,
        tenants: TenantFile,
        lengths: Lengths,
    ) -> None:
        self._config, self._model, self._stop = config, model, stop
        made_up = f"gateway-{secrets.token_hex(2)}" if keys is None else keys.name
        self._gateway_id = config.name or made_up
        self._incarnation = time.time_ns()
        identity = peer_identity("gateway", self._gateway_id, self._incarnation)
        self._tokenization = Tokenization(model.tokenizer, num_threads=config.num_tokenizer_threads)
        self._ledger = self._make_ledger()
        self._pools = PoolView()
        self._clients: Server[ToGateway] = Server(
            context,
            ToGateway,
            keys=keys,
            allowed={"client": ToGateway},
            rate=Rate(config.client_messages_per_s, 10 * config.client_messages_per_s),
        )
        limits = Limits(
            silence_s=config.client_silence_s,
            max_backlog_bytes=config.max_client_backlog_kib << 10,
        )
        self._sessions = Sessions(limits, self._clients.key_name)
        self._intake = Intake(
            config,
            self._tokenization,
            tenants,
            lengths,
            offer=self._offer,
            key_of=self._clients.key_name,
            submit=self._submit,
            refuse=self._clients.send,
        )
        self._coordinator: Link[ToGatewayFromCoordinator] = Link(
            context,
            ToGatewayFromCoordinator,
            identity=identity,
            address=config.coordinator,
            keys=keys,
            server="/".join(COORDINATOR),
        )
        self._nodes = NodeLinks(
            context,
            identity=identity,
            beat=PeerBeat(gateway_id=self._gateway_id, incarnation=self._incarnation),
            receive=self._from_node,
            keys=keys,
        )

    def _make_ledger(self) -> Ledger:
        known_as = Identity(
            self._gateway_id,
            self._incarnation,
            self._model.identity.weights_fingerprint,
            self._model.defaults.eos_token_ids,
            prefix_key=read_prefix_key(self._config.keys),
        )
        self._log = open_log(
            self._config.event_log,
            role="gateway",
            name=self._gateway_id,
            built_from=(self._config, known_as),
        )
        return record(Ledger(known_as, self._tokenization.decode), self._log, RECORDED)

    def bind(self) -> str:
        """Listen for clients; returns the address that they dial. ValueError for a bad name."""
        require_readable(self._hello(), NAMES_ADVICE)
        bound = self._clients.bind(self._config.host, self._config.port)
        port = bound.rsplit(":", 1)[1]
        return f"tcp://{self._config.advertised_host or self._config.host}:{port}"

    def loops(self, on_ready: Callable[[], None]) -> list[Coroutine[Any, Any, None]]:
        """What runs for as long as the gateway does."""
        return [
            self._serve_clients(),
            self._hear_coordinator(on_ready),
            self._tick(),
            self._beat(),
            self._reread(),
        ]

    async def drain(self) -> None:
        """Once asked to stop take nothing new; return when all is finished, or may not wait."""
        await self._stop.wait()
        self._intake.is_closed = True
        self._stop.clear()
        self._coordinator.send(self._hello())
        give_up_at = time.monotonic() + self._config.drain_s
        while self._ledger or self._intake.num_tokenising:
            if self._stop.is_set() or time.monotonic() > give_up_at:
                logger.warning("stopping with %d requests in flight", len(self._ledger))
                self._execute(self._ledger.end_all(time.monotonic()))
                break
            await asyncio.sleep(TICK_S)
        # Sockets are closed without lingering, so what was sent last needs a moment.
        last_words_at = time.monotonic() + min(LAST_WORDS_S, self._config.drain_s)
        await asyncio.sleep(TICK_S)
        while self._sessions.num_unconfirmed and time.monotonic() < last_words_at:  # noqa: ASYNC110
            await asyncio.sleep(TICK_S)

    async def close(self) -> None:
        """Hang up everywhere."""
        await self._intake.close()
        self._nodes.close_all()
        self._coordinator.close()
        self._clients.close()
        if self._log is not None:
            self._log.close()

    # --- clients ----------------------------------------------------------------------------

    async def _serve_clients(self) -> None:
        while True:
            client, message = await self._clients.receive()
            try:
                self._from_client(client, message)
            except Exception:  # one request must not end everybody's service
                logger.exception("cannot handle a %s of a client", type(message).__name__)

    def _from_client(self, client: bytes, message: ToGateway | ProtocolError) -> None:
        now = time.monotonic()
        match message:
            case Submit(label=label) if self._sessions.knows(client, label):
                self._execute_sessions(self._sessions.repeat(client, label, now))
            case Submit():
                self._intake.take(client, message)
            case CancelRequest(request_id=request_id):
                owner = self._sessions.owner_of(client, request_id, now)
                if owner is not None:
                    self._execute(self._ledger.cancel(owner, request_id, now))
            case Received():
                self._execute_sessions(self._sessions.received(client, message, now))
            case Resume():
                self._execute_sessions(self._sessions.resume(client, message, now))
            case ClientPing():
                offer = self._offer()
                pong = ClientPong(
                    label=message.label,
                    model=offer.model,
                    ready=not self._intake.is_closed and self._pools.is_ready(now),
                    max_model_len=offer.max_model_len,
                )
                self._clients.send(client, pong)
            case ProtocolError():
                self._clients.send(client, _explain(message))

    def _offer(self) -> Offer:
        """What is served now; the context is the shorter of the gateway's and the nodes'."""
        own = self._model.identity.max_model_len
        nodes = self._pools.max_model_len
        return Offer(
            model=self._model.identity.served_name,
            vocab_size=self._model.identity.vocab_size,
            max_model_len=own if nodes is None else min(own, nodes),
            defaults=self._model.defaults,
            sla_classes=self._pools.sla_classes,
        )

    def _submit(self, new: NewRequest) -> None:
        self._execute(self._ledger.submit(new, time.monotonic()))

    def _execute_sessions(self, actions: Iterable[ToClient | Cut]) -> None:
        """Send to clients; one that cannot be reached is detached, and may come back."""
        for action in actions:
            with _going_on(action):
                self._do_for_session(action)

    def _do_for_session(self, action: ToClient | Cut) -> None:
        match action:
            case ToClient(client, message):
                if not self._clients.send(client, message):
                    self._sessions.unreachable(client)
            case Cut(owner, request_id, reason):
                logger.warning("request %s is cut: %s", request_id.hex(), reason)
                self._execute(self._ledger.cancel(owner, request_id, time.monotonic()))

    # --- coordinator and nodes --------------------------------------------------------------

    async def _hear_coordinator(self, on_ready: Callable[[], None]) -> None:
        is_announced = False
        async for message in self._coordinator.messages():
            if isinstance(message, GatewayRefused) and not is_announced:
                raise ValueError(f"the coordinator refuses this gateway: {message.reason}")
            with _going_on(message):
                self._from_coordinator(message, time.monotonic())
            if isinstance(message, GatewayWelcome) and not is_announced:
                is_announced = True
                on_ready()

    def _from_coordinator(self, message: ToGatewayFromCoordinator, now: float) -> None:
        match message:
            case GatewayWelcome():
                self._pools.welcome(message, now)
                self._execute(self._ledger.from_coordinator(message, now))
                if message.drain and not self._intake.is_closed:
                    logger.info("the coordinator orders this gateway to leave")
                    self._stop.set()
            case GatewayRefused(reason=reason):
                logger.error("the coordinator refuses this gateway now: %s", reason)
            case _:
                self._execute(self._ledger.from_coordinator(message, now))

    def _from_node(self, node: NodeRef, message: msgspec.Struct) -> None:
        try:
            self._execute(self._ledger.from_node(node, message, time.monotonic()))
        except Exception:  # a message of one node must not end everybody's service
            logger.exception("cannot handle a %s of %s", type(message).__name__, node.node_id)

    async def _reread(self) -> None:
        while True:
            await asyncio.sleep(REREAD_S)
            self._intake.reread_tenants()

    def _hello(self) -> GatewayHello:
        return GatewayHello(
            gateway_id=self._gateway_id,
            incarnation=self._incarnation,
            model=self._model.identity,
            num_live_requests=len(self._ledger),
            is_draining=self._intake.is_closed,
            nodes=wording.hello_nodes(self._ledger.nodes),
        )

    async def _beat(self) -> None:
        """Say hello to the coordinator and a word to every node, each second."""
        while True:
            with _going_on("hello"):
                self._coordinator.send(self._hello())
            with _going_on("beat"):
                self._nodes.beat_all()
            await asyncio.sleep(BEAT_S)
            complaint = self._pools.complain(time.monotonic())
            if complaint is not None:
                logger.warning("%s at %s", complaint, self._config.coordinator)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            with _going_on("tick of the ledger"):
                self._execute(self._ledger.tick(now))
            with _going_on("tick of the sessions"):
                self._execute_sessions(self._sessions.tick(now))

    def _execute(self, actions: Iterable[Action]) -> None:
        """Do what the ledger asks; clients hear through their sessions."""
        now = time.monotonic()
        for action in actions:
            with _going_on(action):
                self._do(action, now)

    def _do(self, action: Action, now: float) -> None:
        match action:
            case ToClient(client, message):
                self._execute_sessions(self._sessions.tell(client, message, now))
                if isinstance(message, Done):
                    self._intake.note_end(message)
            case ToNode(node, message):
                self._nodes.send(node, message)
            case ToCoordinator(message):
                self._coordinator.send(message)
            case CloseNode(node_id, epoch, reason):
                logger.info("node %s of epoch %d is down: %s", node_id, epoch, reason)
                self._nodes.close(node_id, epoch)


@contextlib.contextmanager
def _going_on(what: object) -> Iterator[None]:
    """Around one thing among many: where it fails, the others still happen."""
    try:
        yield
    except Exception:
        name = what if isinstance(what, str) else type(what).__name__
        logger.exception("this gateway goes on without one %s", name)


def _explain(error: ProtocolError) -> Malformed:
    """What a client is told of a message that was dropped."""
    return Malformed(message=str(error)[:500], is_rate_limited=isinstance(error, RateLimited))
