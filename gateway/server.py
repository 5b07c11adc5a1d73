"""The gateway's shell: a ROUTER for clients, a link to the coordinator, links to nodes, a clock."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import zmq.asyncio

from gateway import parts, wording
from gateway.actions import NewRequest
from gateway.admission import Offer, Rejected
from gateway.clients import Sessions
from gateway.config import GatewayConfig
from gateway.coordinator_link import CoordinatorLink
from gateway.deeds import Deeds
from gateway.evaluating import Evaluations
from gateway.evaluations import EvaluationLedger
from gateway.http.local import LocalClients
from gateway.http.services import Services
from gateway.http.site import HttpSite, api_routes
from gateway.http.text import TokenizedText
from gateway.intake import Intake
from gateway.ledger import Ledger
from gateway.lengths import Lengths, make_lengths
from gateway.node_links import NodeLinks
from gateway.observers import Observers
from gateway.pool_view import PoolView
from gateway.served_model import ServedModel
from gateway.tenant_file import TenantFile
from gateway.tokenize import Tokenization
from gateway.zmq_clients import ZmqClients, going_on
from tandem.codec import require_readable
from tandem.event_log import open_log, record
from tandem.keys import Keyring
from tandem.messages.client import ClientPong, Done, Refused, Submit
from tandem.messages.common import NAMES_ADVICE, NodeRef
from tandem.messages.placement import GatewayHello, Placed, PlaceRefused, ToGatewayFromCoordinator
from tandem.messages.serving import PeerBeat
from tandem.service import log_stats, run_until
from tandem.sockets import keyring_or_loopback, peer_identity

RECORDED = ("submit", "cancel", "end_all", "from_coordinator", "from_node", "tick")
TICK_S = 0.1
BEAT_S = 1.0
LAST_WORDS_S = 1.0  # how long clients may take to confirm the last ends
REREAD_S = 2.0
STALLED_S = 3.0
NO_HTTP = -1
logger = logging.getLogger(__name__)


async def serve(
    config: GatewayConfig,
    model: ServedModel,
    *,
    stop: asyncio.Event,
    on_ready: Callable[[str], None],
    on_http: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until `stop` is set; `on_ready` gets the address once the coordinator welcomed it,
    `on_http` then the one for HTTP, where there is one.

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
        address, http_address = gateway.bind(), await gateway.listen_http()

        def announce() -> None:
            on_ready(address)
            if http_address is not None:
                on_http(http_address)

        await run_until(asyncio.Event(), gateway.drain(), *gateway.loops(announce))
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
        self._pools = PoolView()
        self._tokenization = Tokenization(
            model.tokenizer,
            num_threads=config.num_tokenizer_threads,
            context=lambda: self._offer().max_model_len,
        )
        self._known_as = parts.make_identity(config, model, self._gateway_id, self._incarnation)
        self._ledger = self._make_ledger()
        self._clients = parts.make_clients(context, config, keys)
        sessions = Sessions(parts.make_limits(config), self._clients.key_name)
        self._zmq_clients = ZmqClients(
            self._clients, sessions, take=self._take, cancel=self._cancel, pong=self._pong
        )
        self._local = LocalClients(self._take, self._cancel)
        self._intake = Intake(
            config,
            self._tokenization,
            tenants,
            lengths,
            offer=self._offer,
            key_of=self._key_of,
            submit=self._submit,
            refuse=self._refuse,
        )
        self._coordinator = CoordinatorLink(
            parts.make_link(context, config, identity, keys),
            self._pools,
            hello=self._hello,
            hear=self._from_coordinator,
            leave=self._leave,
        )
        self._nodes = NodeLinks(
            context,
            identity=identity,
            beat=PeerBeat(gateway_id=self._gateway_id, incarnation=self._incarnation),
            receive=self._from_node,
            keys=keys,
        )
        self._deeds = self._make_deeds()
        self._evaluations = self._make_evaluations()
        self._observers = self._make_observers(sessions)
        self._tokenization.watch(self._observers.metrics.tokenised)
        self._site = None if config.http_port == NO_HTTP else self._make_site()
        self._ticked_at = time.monotonic()

    def _make_deeds(self) -> Deeds:
        return Deeds(
            self._local, self._zmq_clients, self._nodes, self._coordinator, ended=self._note_end
        )

    def _make_evaluations(self) -> Evaluations:
        return Evaluations(
            EvaluationLedger(self._known_as, num_labels=self._model.identity.num_labels),
            offer=self._offer,
            enter=self._intake.enter_evaluation,
            leave=self._intake.leave_evaluation,
            to_node=self._nodes.send,
            to_coordinator=self._coordinator.send,
            ended=lambda task, outcome: self._observers.metrics.evaluated(task, outcome),
        )

    def _make_observers(self, sessions: Sessions) -> Observers:
        return parts.make_observers(
            self._config,
            self._gateway_id,
            self._model.identity.served_name,
            ledger=self._ledger,
            sessions=sessions,
            pools=self._pools,
        )

    def _make_site(self) -> HttpSite:
        services = Services(
            offer=self._offer,
            open=self._local.open,
            turn_away=self._turn_away,
            text=TokenizedText(self._tokenization),
            evaluate=self._evaluations,
            created_unix_s=int(time.time()),
        )
        metrics = self._observers.metrics
        routes = api_routes(
            services, health=self._health, readiness=self._readiness, metrics=metrics.render
        )
        return HttpSite(self._config, routes, metrics)

    def _make_ledger(self) -> Ledger:
        known_as = self._known_as
        self._log = open_log(
            self._config.event_log,
            role="gateway",
            name=self._gateway_id,
            built_from=(self._config, known_as),
        )
        tokens = self._tokenization
        return record(Ledger(known_as, tokens.decode, tokens.whole), self._log, RECORDED)

    def bind(self) -> str:
        """Listen for clients; returns the address that they dial. ValueError for a bad name."""
        require_readable(self._hello(), NAMES_ADVICE)
        bound = self._clients.bind(self._config.host, self._config.port)
        port = bound.rsplit(":", 1)[1]
        return f"tcp://{self._config.advertised_host or self._config.host}:{port}"

    async def listen_http(self) -> str | None:
        """Listen for HTTP; returns the address. Raises ValueError where that cannot be."""
        return None if self._site is None else await self._site.start()

    def loops(self, on_ready: Callable[[], None]) -> list[Coroutine[Any, Any, None]]:
        """What runs for as long as the gateway does."""
        return [
            self._zmq_clients.serve(),
            self._coordinator.listen(on_ready),
            self._tick(),
            self._beat(),
            self._reread(),
            log_stats(logger, self._ledger.sample),
        ]

    async def drain(self) -> None:
        """Once asked to stop take nothing new; return when all is finished, or may not wait."""
        await self._stop.wait()
        self._intake.is_closed = True
        self._stop.clear()
        self._coordinator.say_hello()
        give_up_at = time.monotonic() + self._config.drain_s
        while self._ledger or self._intake.num_tokenising or self._num_http_calls:
            if self._stop.is_set() or time.monotonic() > give_up_at:
                logger.warning("stopping with %d requests in flight", len(self._ledger))
                self._deeds.do(self._ledger.end_all(time.monotonic()))
                self._evaluations.end_all(time.monotonic())
                break
            await asyncio.sleep(TICK_S)
        # Sockets are closed without lingering, so what was sent last needs a moment.
        last_words_at = time.monotonic() + min(LAST_WORDS_S, self._config.drain_s)
        await asyncio.sleep(TICK_S)
        while self._num_listening and time.monotonic() < last_words_at:  # noqa: ASYNC110
            await asyncio.sleep(TICK_S)

    @property
    def _num_http_calls(self) -> int:
        return 0 if self._site is None else self._site.num_calls

    @property
    def _num_listening(self) -> int:
        """Callers whose last words may be on their way."""
        return self._zmq_clients.num_unconfirmed + self._num_http_calls

    async def close(self) -> None:
        """Hang up everywhere."""
        if self._site is not None:
            await self._site.close()
        await self._intake.close()
        self._nodes.close_all()
        self._coordinator.close()
        self._clients.close()
        if self._log is not None:
            self._log.close()
        await self._observers.close()

    # --- clients ----------------------------------------------------------------------------

    def _take(self, client: bytes, submit: Submit, request_id: bytes | None = None) -> None:
        self._intake.take(client, submit, request_id)

    def _cancel(self, owner: bytes, request_id: bytes) -> None:
        self._deeds.do(self._ledger.cancel(owner, request_id, time.monotonic()))

    def _turn_away(self, submit: Submit, key: str | None, num_bytes: int) -> None:
        try:
            self._intake.turn_away(submit, key, num_bytes)
        except Rejected as rejected:
            self._observers.refused(rejected.code)
            raise

    def _refuse(self, client: bytes, refused: Refused) -> None:
        self._observers.refused(refused.code)
        if self._local.owns(client):
            self._local.tell(client, refused)
        else:
            self._clients.send(client, refused)

    def _key_of(self, client: bytes) -> str | None:
        if self._local.owns(client):
            return self._local.key_of(client)
        return self._clients.key_name(client)

    def _pong(self, label: str) -> ClientPong:
        offer = self._offer()
        return ClientPong(
            label=label, model=offer.model, ready=self._is_ready, max_model_len=offer.max_model_len
        )

    def _health(self) -> str:
        now = time.monotonic()
        if now - self._ticked_at > STALLED_S:
            return "stalled"
        return "ok" if self._pools.is_heard(now) else "no coordinator"

    def _readiness(self) -> str:
        if self._intake.is_closed:
            return "stopping"
        return "ok" if self._is_ready else "no nodes"

    @property
    def _is_ready(self) -> bool:
        return not self._intake.is_closed and self._pools.is_ready(time.monotonic())

    def _offer(self) -> Offer:
        return self._model.offer(self._pools)

    def _submit(self, new: NewRequest) -> None:
        self._observers.began(new)
        self._deeds.do(self._ledger.submit(new, time.monotonic()))

    # --- coordinator and nodes --------------------------------------------------------------

    def _from_coordinator(self, message: ToGatewayFromCoordinator, now: float) -> None:
        if isinstance(message, Placed | PlaceRefused):
            self._intake.note_answer(message, now)
        if not self._evaluations.from_coordinator(message, now):
            self._deeds.do(self._ledger.from_coordinator(message, now))

    def _leave(self) -> None:
        if not self._intake.is_closed:
            logger.info("the coordinator orders this gateway to leave")
            self._stop.set()

    def _from_node(self, node: NodeRef, message: msgspec.Struct) -> None:
        now = time.monotonic()
        with going_on(message):  # one node's must not end everybody's service
            if not self._evaluations.from_node(node, message, now):
                self._deeds.do_clients_first(self._ledger.from_node(node, message, now))

    async def _reread(self) -> None:
        while True:
            await asyncio.sleep(REREAD_S)
            self._intake.reread_tenants()

    def _hello(self) -> GatewayHello:
        return GatewayHello(
            gateway_id=self._gateway_id,
            incarnation=self._incarnation,
            model=self._model.identity,
            num_live_requests=len(self._ledger) + len(self._evaluations),
            is_draining=self._intake.is_closed,
            nodes=wording.hello_nodes((*self._ledger.nodes, *self._evaluations.nodes)),
            turned_away=self._intake.turned_away,
        )

    async def _beat(self) -> None:
        """Say hello to the coordinator and a word to every node, each second."""
        while True:
            with going_on("hello"):
                self._coordinator.say_hello()
            with going_on("beat"):
                self._nodes.beat_all()
            await asyncio.sleep(BEAT_S)
            complaint = self._pools.complain(time.monotonic())
            if complaint is not None:
                logger.warning("%s at %s", complaint, self._config.coordinator)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = self._ticked_at = time.monotonic()
            with going_on("tick of the ledger"):
                self._deeds.do(self._ledger.tick(now))
            with going_on("tick of the evaluations"):
                self._evaluations.tick(now)
            with going_on("tick of the sessions"):
                self._zmq_clients.tick(now)

    def _note_end(self, done: Done) -> None:
        self._intake.note_end(done)
        self._observers.ended(done)
