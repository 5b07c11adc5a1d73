"""Whole nodes without sockets, threads or clock (node_world.py), for every test of this folder."""

from types import SimpleNamespace

import pytest

from tests.node.node_world import World, expected, prompt, stream, tokens_after


@pytest.fixture
def pair() -> SimpleNamespace:
    """The harness: `World`, `prompt`, `expected`, `tokens_after`, `stream`."""
    return SimpleNamespace(
        World=World, prompt=prompt, expected=expected, tokens_after=tokens_after, stream=stream
    )
