"""Gateways with an HTTP door, one per module."""

from collections.abc import Iterator

import pytest

from tests.gateway.http.running import HttpGateway, make_model

# What a module's gateway is given beside the usual; a module may have its own of this name.
SETTINGS: dict[str, object] = {}


@pytest.fixture(scope="module")
def gateway(request: pytest.FixtureRequest, tokenizer) -> Iterator[HttpGateway]:
    """A gateway of this module's `SETTINGS`."""
    settings = getattr(request.module, "SETTINGS", SETTINGS)
    with HttpGateway(make_model(tokenizer), settings) as running:
        running.warm_up()
        yield running
