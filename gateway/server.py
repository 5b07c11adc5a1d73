"""The gateway's shell: a ROUTER for clients, a link to the coordinator, links to nodes, a clock."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq.asyncio

from gateway.actions import Action, CloseNode, ToClient, ToCoordinator, ToNode
from gateway.admission import Offer, Origin, Rejected, admit, check_submit
from gateway.config import GatewayConfig
from gateway.ledger import Identity, Ledger
from gateway.node_links import NodeLinks
from gateway.pool_view import PoolView
from gateway.tokenize import Tokenization, Tokenizer
from tandem.codec import ProtocolError, require_readable
from tandem.messages.client import (
    CancelRequest,
    ClientPing,
    ClientPong,
    Malformed,
    Refused,
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
from tandem.sampling import GenerationDefaults
from tandem.service import run_until
from tandem.sockets import Link, Server, peer_identity, require_loopback

TICK_S = 0.1
BEAT_S = 1.0
LAST_WORDS_S = 0.1  # sockets are closed without lingering, so what was sent last needs a moment
OVERLOADED_RETRY_S = 1.0
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

    Then requests in flight are finished; set once more, they are ended.
    Raises ValueError where it cannot listen, or does not fit the deployment.
    """
    if not config.allow_unauthenticated:
        require_loopback(config.host)
    context = zmq.asyncio.Context()
    gateway = None
    try:
        gateway = Gateway(context, config, model)
        address = gateway.bind()
        loops = gateway.loops(lambda: on_ready(address))
        await run_until(asyncio.Event(), gateway.drain(stop), *loops)
    finally:
        if gateway is not None:
            await gateway.close()
        context.term()


class Gateway:
    """Moves messages between sockets and the ledger; decides nothing. Lives on one event loop."""

    def __init__(
        self, context: zmq.asyncio.Context, config: GatewayConfig, model: ServedModel
    ) -> None:
        self._config = config
        self._model = model
        self._gateway_id = config.name or f"gateway-{secrets.token_hex(2)}"
        self._incarnation = time.time_ns()
        identity = peer_identity("gateway", self._gateway_id, self._incarnation)
        self._tokenization = Tokenization(model.tokenizer, num_threads=config.num_tokenizer_threads)
        self._ledger = Ledger(
            Identity(
                self._gateway_id,
                self._incarnation,
                model.identity.weights_fingerprint,
                model.defaults.eos_token_ids,
            ),
            self._tokenization.decode,
        )
        self._pools = PoolView()
        self._clients: Server[ToGateway] = Server(context, ToGateway)
        self._coordinator: Link[ToGatewayFromCoordinator] = Link(
            context, ToGatewayFromCoordinator, identity=identity, address=config.coordinator
        )
        self._nodes = NodeLinks(
            context,
            identity=identity,
            beat=PeerBeat(gateway_id=self._gateway_id, incarnation=self._incarnation),
            receive=self._from_node,
        )
        self._tokenising: dict[asyncio.Task[None], int] = {}
        self._is_draining = False

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
        ]

    async def drain(self, stop: asyncio.Event) -> None:
        """Once `stop` is set take nothing new; return when all is finished, or may not wait."""
        await stop.wait()
        self._is_draining = True
        stop.clear()
        give_up_at = time.monotonic() + self._config.drain_s
        while self._ledger or self._tokenising:
            if stop.is_set() or time.monotonic() > give_up_at:
                logger.warning("stopping with %d requests in flight", len(self._ledger))
                self._execute(self._ledger.end_all(time.monotonic()))
                break
            await asyncio.sleep(TICK_S)
        await asyncio.sleep(LAST_WORDS_S)

    async def close(self) -> None:
        """Hang up everywhere."""
        for task in self._tokenising:
            task.cancel()
        await asyncio.gather(*self._tokenising, return_exceptions=True)
        self._tokenization.close()
        self._nodes.close_all()
        self._coordinator.close()
        self._clients.close()

    # --- clients ----------------------------------------------------------------------------

    async def _serve_clients(self) -> None:
        while True:
            client, message = await self._clients.receive()
            try:
                self._from_client(client, message)
            except Exception:  # one request must not end everybody's service
                logger.exception("cannot handle a %s of a client", type(message).__name__)

    def _from_client(self, client: bytes, message: ToGateway | ProtocolError) -> None:
        match message:
            case Submit():
                self._submit(client, message)
            case CancelRequest():
                actions = self._ledger.cancel(client, message.request_id, time.monotonic())
                self._execute(actions)
            case ClientPing():
                offer = self._offer()
                pong = ClientPong(
                    label=message.label,
                    model=offer.model,
                    ready=not self._is_draining and self._pools.is_ready(time.monotonic()),
                    max_model_len=offer.max_model_len,
                )
                self._clients.send(client, pong)
            case ProtocolError():
                self._clients.send(client, Malformed(message=str(message)[:500]))

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

    def _submit(self, client: bytes, submit: Submit) -> None:
        origin = Origin(
            client=client,
            request_id=secrets.token_bytes(16),
            random_seed=secrets.randbits(64),
            received=time.monotonic(),
            received_unix_s=time.time(),
        )
        num_bytes = len(submit.prompt or b"") + 4 * len(submit.prompt_ids or b"")
        try:
            self._check_room(num_bytes)
            check_submit(submit, self._offer())
        except Rejected as rejected:
            self._refuse(client, submit, rejected)
            return
        task = asyncio.create_task(self._tokenise(submit, origin))
        self._tokenising[task] = num_bytes
        task.add_done_callback(self._tokenising.pop)

    def _check_room(self, num_bytes: int) -> None:
        """Refuse at once what would only wait; a retry later finds other requests gone."""
        config = self._config
        if self._is_draining:
            raise Rejected("unavailable", "this gateway is stopping: submit to another one")
        num_live = len(self._ledger) + len(self._tokenising)
        if num_live >= config.max_live_requests:
            raise Rejected(
                "overloaded",
                f"{num_live} requests are in flight and this gateway takes "
                f"{config.max_live_requests} (--max-live-requests): try again, or start another",
                OVERLOADED_RETRY_S,
            )
        num_waiting = sum(self._tokenising.values()) + 4 * self._ledger.num_prompt_tokens
        if num_waiting + num_bytes > config.max_prompt_mib << 20:
            raise Rejected(
                "overloaded",
                f"prompts in flight take {num_waiting >> 20} MiB and this gateway holds "
                f"{config.max_prompt_mib} (--max-prompt-mib): try again, or start another",
                OVERLOADED_RETRY_S,
            )

    async def _tokenise(self, submit: Submit, origin: Origin) -> None:
        try:
            ids = await self._tokenization.prompt_ids(submit)
            new = admit(submit, ids, self._offer(), origin)
        except Rejected as rejected:
            self._refuse(origin.client, submit, rejected)
        except Exception:  # an error of ours: the client must not wait for ever
            logger.exception("cannot admit a request")
            text = "the gateway failed on this request: its log says why"
            self._refuse(origin.client, submit, Rejected("internal", text))
        else:
            self._execute(self._ledger.submit(new, time.monotonic()))

    def _refuse(self, client: bytes, submit: Submit, rejected: Rejected) -> None:
        refused = Refused(
            label=submit.label,
            code=rejected.code,
            message=str(rejected)[:2000],
            retry_after_s=rejected.retry_after_s,
        )
        self._clients.send(client, refused)

    # --- coordinator and nodes --------------------------------------------------------------

    async def _hear_coordinator(self, on_ready: Callable[[], None]) -> None:
        is_announced = False
        async for message in self._coordinator.messages():
            now = time.monotonic()
            match message:
                case GatewayWelcome():
                    self._pools.welcome(message, now)
                    if not is_announced:
                        is_announced = True
                        on_ready()
                    for down in message.recent_downs:
                        self._execute(self._ledger.from_coordinator(down, now))
                case GatewayRefused(reason=reason) if not is_announced:
                    raise ValueError(f"the coordinator refuses this gateway: {reason}")
                case GatewayRefused(reason=reason):
                    logger.error("the coordinator refuses this gateway now: %s", reason)
                case _:
                    self._execute(self._ledger.from_coordinator(message, now))

    def _from_node(self, node: NodeRef, message: msgspec.Struct) -> None:
        try:
            self._execute(self._ledger.from_node(node, message, time.monotonic()))
        except Exception:  # a message of one node must not end everybody's service
            logger.exception("cannot handle a %s of %s", type(message).__name__, node.node_id)

    def _hello(self) -> GatewayHello:
        return GatewayHello(
            gateway_id=self._gateway_id,
            incarnation=self._incarnation,
            model=self._model.identity,
            num_live_requests=len(self._ledger),
        )

    async def _beat(self) -> None:
        """Say hello to the coordinator and a word to every node, each second."""
        while True:
            self._coordinator.send(self._hello())
            self._nodes.beat_all()
            await asyncio.sleep(BEAT_S)
            complaint = self._pools.complain(time.monotonic())
            if complaint is not None:
                logger.warning("%s at %s", complaint, self._config.coordinator)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._execute(self._ledger.tick(time.monotonic()))

    def _execute(self, actions: Iterable[Action]) -> None:
        """Send what is to be sent; a client that cannot be reached loses its requests."""
        unreachable: set[bytes] = set()
        for action in actions:
            match action:
                case ToClient(client, message):
                    if client not in unreachable and not self._clients.send(client, message):
                        unreachable.add(client)
                case ToNode(node, message):
                    self._nodes.send(node, message)
                case ToCoordinator(message):
                    self._coordinator.send(message)
                case CloseNode(node_id, epoch, reason):
                    logger.info("node %s of epoch %d is down: %s", node_id, epoch, reason)
                    self._nodes.close(node_id, epoch)
        for client in unreachable:
            self._execute(self._ledger.client_gone(client, time.monotonic()))
