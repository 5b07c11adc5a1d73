"""Routing prefixes: the same pages have the same names at gateways and nodes."""

import numpy as np
import pytest

from gateway.ledger import Identity, Ledger
from gateway.prefixes import MAX_PAGES, RoutingPrefixes
from scheduling.page_hash import PageHasher
from tandem.frames import TokenIds
from tests.gateway.ledger_world import EOS, World, letters


def names(ids, *, key: bytes = b"fingerprint", tenant: str = "default") -> bytes:
    """What a node with pages of 2 tokens calls its pages (node/state.py)."""
    hasher = PageHasher(
        key=key, tenant=tenant, weights_fingerprint="fingerprint", dtype="float32", page_size=2
    )
    return b"".join(each[:8] for each in hasher.chain(np.array(ids, dtype=np.int32)))


@pytest.fixture
def told(world):
    """The coordinator has told the nodes' page size and type."""
    world.welcome(page_size=2, kv_dtype="float32")
    return world


def test_a_place_names_the_prompts_full_pages(told) -> None:
    told.submit()
    assert told.question().prefix_hashes.data == names(range(4))


def test_tenants_have_pages_of_their_own(told) -> None:
    told.submit(tenant="alice")
    assert told.question().prefix_hashes.data == names(range(4), tenant="alice")
    assert names(range(4), tenant="alice") != names(range(4))


def test_the_deployments_key_names_pages() -> None:
    world = World(Ledger(Identity("gw", 5, "fingerprint", (EOS,), b"secret"), letters))
    world.welcome(page_size=2, kv_dtype="float32")
    world.submit()
    assert world.question().prefix_hashes.data == names(range(4), key=b"secret")


def test_before_the_first_node_no_page_has_a_name(world) -> None:
    world.welcome()
    world.submit()
    assert world.question().prefix_hashes.data == b""


def test_later_attempts_name_pages_with_the_answer_so_far(told) -> None:
    told.submit()
    told.coordinate()
    told.emit(told.nodes["d0"], told.tokens(1, 0, [10, 11, 12]))
    told.lose("d0")
    assert told.question().prefix_hashes.data == names([0, 1, 2, 3, 4, 10, 11, 12])


def test_other_pages_have_other_names(told) -> None:
    told.submit()
    told.coordinate()
    told.welcome(page_size=4, kv_dtype="float32")
    told.lose("d0")
    assert len(told.question().prefix_hashes) == 8


def test_a_chain_hashes_each_page_once_and_ends() -> None:
    prefixes = RoutingPrefixes(key=b"", weights_fingerprint="fingerprint")
    prefixes.set_layout(2, "float32")
    chain = prefixes.chain("default", None)
    ids = TokenIds(range(2 * MAX_PAGES + 9)).array
    for length in (0, 1, 2, 7, 8, 100):
        assert chain.extend(ids[:length]).data == names(ids[:length])
        assert prefixes.chain("default", chain) is chain
    assert chain.extend(ids).data == names(ids[: 2 * MAX_PAGES])
    assert chain.extend(ids).data == names(ids[: 2 * MAX_PAGES])
