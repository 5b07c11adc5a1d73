"""Page hashes: equal exactly for equal prefixes of the same tenant and model."""

import numpy as np
import pytest

from node.prefix_index import PrefixIndex
from scheduling.page_hash import PageHasher


def hasher(**changes: object) -> PageHasher:
    settings: dict[str, object] = {
        "key": b"k",
        "tenant": "a",
        "weights_fingerprint": "w",
        "dtype": "float32",
        "page_size": 4,
    }
    return PageHasher(**(settings | changes))  # type: ignore[arg-type]


IDS = np.arange(14, dtype=np.int32)


def test_chain_covers_full_pages_and_can_be_continued() -> None:
    whole = hasher().chain(IDS)
    assert len(whole) == 3
    assert hasher().chain(IDS[4:], parent=whole[0]) == whole[1:]
    assert len(set(whole)) == 3


def test_a_changed_token_changes_its_page_and_all_after_it() -> None:
    other = IDS.copy()
    other[5] = 99
    a, b = hasher().chain(IDS), hasher().chain(other)
    assert a[0] == b[0]
    assert a[1] != b[1]
    assert a[2] != b[2]


@pytest.mark.parametrize(
    "change",
    [{"tenant": "b"}, {"weights_fingerprint": "x"}, {"dtype": "bfloat16"}, {"key": b"other"}],
)
def test_other_tenants_models_dtypes_and_keys_share_nothing(change: dict[str, object]) -> None:
    assert not set(hasher().chain(IDS)) & set(hasher(**change).chain(IDS))


def test_index_matches_the_longest_known_prefix_and_forgets() -> None:
    index, chain = PrefixIndex(), hasher().chain(IDS)
    for page, page_hash in enumerate(chain):
        index.insert(page_hash, page)
    index.insert(chain[0], 77)
    assert index.match(chain) == [0, 1, 2]
    assert index.indexed([0, 77]) == {0}
    index.forget([1, 50])
    assert index.match(chain) == [0]
    assert len(index) == 2
