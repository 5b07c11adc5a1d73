"""One gateway's HTTP door put together: routes, keys, limits, port."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from gateway.config import GatewayConfig
from gateway.http.call import CallLimits
from gateway.http.door import Door
from gateway.http.endpoints import model_routes, state_routes
from gateway.http.listener import HttpListener, ListenerSettings
from gateway.http.openapi import with_description
from gateway.http.protocol import ConnectionLimits
from gateway.http.routes import Route
from gateway.http.services import Services
from gateway.http.token_endpoints import token_routes
from gateway.metrics import GatewayMetrics
from gateway.metrics_http import HttpMeter
from gateway.openai.evaluation import evaluation_routes
from gateway.openai.routes import generation_routes
from tandem.bearer import FILE, BearerKeys
from tandem.exposition import CONTENT_TYPE
from tandem.sockets import require_loopback

logger = logging.getLogger(__name__)


def api_routes(
    services: Services,
    *,
    health: Callable[[], str],
    readiness: Callable[[], str],
    metrics: Callable[[], bytes],
) -> list[Route]:
    """Everything that a gateway answers. `metrics` is the text of a scrape."""

    async def get_metrics(request: Request) -> Response:
        return Response(metrics(), media_type=CONTENT_TYPE)

    scrape = Route(
        method="GET",
        path="/metrics",
        handler=get_metrics,
        summary="Counters for Prometheus",
        role="operator",
    )
    return [
        *state_routes(health, readiness),
        *model_routes(services),
        *token_routes(services),
        *generation_routes(services),
        *evaluation_routes(services),
        scrape,
    ]


class HttpSite:
    """See the module. `start` and `close` belong to one running loop."""

    def __init__(
        self, config: GatewayConfig, routes: Sequence[Route], metrics: GatewayMetrics
    ) -> None:
        """Raises ValueError where the keys cannot be used, or are missing on an open address."""
        routes = with_description(routes)
        self._door = Door(
            routes,
            keys=_keys(config),
            limits=CallLimits(
                max_body_bytes=config.http_max_body_mib << 20,
                body_grace_s=config.http_idle_s,
                silence_s=config.http_comment_s,
            ),
            max_bodies_bytes=config.max_prompt_mib << 20,
        )
        app: ASGIApp = HttpMeter(self._door, metrics, [route.path for route in routes])
        self._listener = HttpListener(
            app,
            ListenerSettings(
                host=config.http_host,
                port=config.http_port,
                keep_alive_s=config.http_keep_alive_s,
                tls_cert=config.http_tls_cert,
                tls_key=config.http_tls_key,
                limits=ConnectionLimits(
                    max_connections=config.max_http_connections,
                    head_timeout_s=config.http_idle_s,
                    stuck_s=config.http_idle_s,
                ),
            ),
        )

    @property
    def num_calls(self) -> int:
        """Calls that are being served."""
        return self._door.num_calls

    async def start(self) -> str:
        """Listen; returns the address. Raises ValueError where that cannot be."""
        return await self._listener.start()

    async def close(self) -> None:
        """Stop listening, hang up."""
        await self._listener.close()
        self._door.close()


def _keys(config: GatewayConfig) -> BearerKeys | None:
    if config.keys is None:
        if not config.allow_unauthenticated:
            require_loopback(config.http_host)
        return None
    keys = BearerKeys(Path(config.keys))
    if not len(keys):
        logger.warning(
            "%s has no bearer keys, so nobody gets in over HTTP: `tandem keys bearer NAME --keys "
            "%s` makes one",
            Path(config.keys) / FILE,
            config.keys,
        )
    return keys
