"""A ledger's world, made anew for each test, and the tokenizer of the demo model."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gateway.ledger import Identity, Ledger
from gateway.served_model import ServedModel
from tandem.messages.common import ModelIdentity
from tandem.sampling import GenerationDefaults
from tests.gateway.ledger_world import EOS, World, letters


@pytest.fixture
def make_world() -> Callable[[], World]:
    """Makes worlds with a prefill and a decode node, nothing submitted."""

    def make() -> World:
        made = World(Ledger(Identity("gw", 5, "fingerprint", (EOS,)), letters))
        for name in ("p0", "d0"):
            made.add_node(name)
        return made

    return make


@pytest.fixture
def world(make_world: Callable[[], World]) -> World:
    """One of them."""
    return make_world()


@pytest.fixture
def expected(world) -> list[int]:
    """What an undisturbed request of six tokens answers, as the world itself tells it."""
    world.submit(99)
    world.run(12)
    ids = world.ids(99)
    assert len(ids) == 6
    world.places.clear()
    world.ends.clear()
    return ids


@pytest.fixture(scope="session")
def tokenizer(demo_model: Path):
    """The demo model's tokenizer, loaded as the gateway loads it."""
    return AutoTokenizer.from_pretrained(demo_model, local_files_only=True)


@pytest.fixture
def served_model(tokenizer) -> ServedModel:
    """What a gateway serves beside the fake nodes."""
    identity = ModelIdentity(
        served_name="demo",
        weights_fingerprint="w",
        tokenizer_fingerprint="t",
        dtype="",
        max_model_len=4096,
        vocab_size=4096,
    )
    return ServedModel(identity, GenerationDefaults(eos_token_ids=(0,)), tokenizer)
