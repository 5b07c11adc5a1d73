"""Parts of a gateway that follow from its config alone."""

import zmq.asyncio

from gateway.clients import Limits
from gateway.config import GatewayConfig
from gateway.ledger import Identity
from gateway.metrics import GatewayMetrics, LedgerNumbers, SessionNumbers
from gateway.observers import Observers
from gateway.pool_view import PoolView
from gateway.served_model import ServedModel
from gateway.tracing import open_traces
from tandem.keys import COORDINATOR, Keyring, read_prefix_key
from tandem.messages.client import ToGateway
from tandem.messages.placement import ToGatewayFromCoordinator
from tandem.rates import Rate
from tandem.sockets import Link, Server


def make_identity(
    config: GatewayConfig, model: ServedModel, gateway_id: str, incarnation: int
) -> Identity:
    """Who the ledger's owner is."""
    return Identity(
        gateway_id,
        incarnation,
        model.identity.weights_fingerprint,
        model.defaults.eos_token_ids,
        prefix_key=read_prefix_key(config.keys),
    )


def make_clients(
    context: zmq.asyncio.Context, config: GatewayConfig, keys: Keyring | None
) -> Server[ToGateway]:
    """The clients' socket."""
    per_s = config.client_messages_per_s
    return Server(
        context, ToGateway, keys=keys, allowed={"client": ToGateway}, rate=Rate(per_s, 10 * per_s)
    )


def make_limits(config: GatewayConfig) -> Limits:
    """What a client's sessions may cost."""
    return Limits(
        silence_s=config.client_silence_s, max_backlog_bytes=config.max_client_backlog_kib << 10
    )


def make_link(
    context: zmq.asyncio.Context, config: GatewayConfig, identity: bytes, keys: Keyring | None
) -> Link[ToGatewayFromCoordinator]:
    """The socket to the coordinator."""
    return Link(
        context,
        ToGatewayFromCoordinator,
        identity=identity,
        address=config.coordinator,
        keys=keys,
        server="/".join(COORDINATOR),
    )


def make_observers(
    config: GatewayConfig,
    gateway_id: str,
    model_name: str,
    *,
    ledger: LedgerNumbers,
    sessions: SessionNumbers,
    pools: PoolView,
) -> Observers:
    """Metrics, and traces where an endpoint is given."""
    metrics = GatewayMetrics(
        ledger,
        sessions,
        pools,
        gateway_id=gateway_id,
        model_name=model_name,
        with_vllm_names=config.vllm_metrics,
    )
    traces = open_traces(config.otlp_endpoint, gateway_id=gateway_id, model_name=model_name)
    return Observers(metrics, traces)
