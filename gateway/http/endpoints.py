"""What every server of this kind answers beside generating: health, models, versions."""

from collections.abc import Callable
from importlib.metadata import version

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.errors import ApiError
from gateway.http.responses import json_response
from gateway.http.routes import Route
from gateway.http.services import Services


class State(msgspec.Struct, frozen=True, kw_only=True):
    """`ok`, or what is wrong in a word or two."""

    status: str


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """Of the software."""

    version: str


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A model, as OpenAI and vLLM describe it. `max_model_len` is prompt plus answer, in tokens."""

    id: str
    created: int
    max_model_len: int
    root: str
    object: str = "model"
    owned_by: str = "tandem"
    parent: str | None = None
    permission: tuple[str, ...] = ()


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All models: this deployment's one."""

    data: tuple[ModelCard, ...]
    object: str = "list"


def state_routes(health: Callable[[], str], readiness: Callable[[], str]) -> list[Route]:
    """Routes without a key, so they tell nothing but a status. `ok` is 200, all else 503."""

    async def get_health(request: Request) -> Response:
        return _state(health())

    async def get_ready(request: Request) -> Response:
        return _state(readiness())

    return [
        Route(
            method="GET",
            path="/health",
            handler=get_health,
            summary="Whether the gateway works and hears its coordinator",
            response=State,
            role=None,
        ),
        Route(
            method="GET",
            path="/ready",
            handler=get_ready,
            summary="Whether requests are served now",
            response=State,
            role=None,
        ),
    ]


def _state(status: str) -> Response:
    return json_response(State(status=status), status=200 if status == "ok" else 503)


def model_routes(services: Services) -> list[Route]:
    """/version and /v1/models."""

    async def get_version(request: Request) -> Response:
        return json_response(Version(version=version("tandem-serve")))

    async def get_models(request: Request) -> Response:
        return json_response(ModelList(data=(_card(services),)))

    async def get_model(request: Request) -> Response:
        require_model(services, request.path_params["model_id"])
        return json_response(_card(services))

    return [
        Route(
            method="GET",
            path="/version",
            handler=get_version,
            summary="The version of the software",
            response=Version,
        ),
        Route(
            method="GET",
            path="/v1/models",
            handler=get_models,
            summary="The models that are served",
            response=ModelList,
        ),
        Route(
            method="GET",
            path="/v1/models/{model_id:path}",
            handler=get_model,
            summary="One model",
            response=ModelCard,
        ),
    ]


def _card(services: Services) -> ModelCard:
    offer = services.offer()
    return ModelCard(
        id=offer.model,
        created=services.created_unix_s,
        max_model_len=offer.max_model_len,
        root=offer.model,
    )


def require_model(services: Services, name: str | None) -> None:
    """Raise ApiError where another model is asked for than the one that is served."""
    served = services.offer().model
    if name is not None and name != served:
        text = f"this deployment serves {served}, not {name[:200]}: name it, or no model"
        raise ApiError(404, text, code="unknown_model", param="model")
