"""What nodes have cached: numbering, gaps, snapshots, bounds, and what placement makes of it."""

from hypothesis import given
from hypothesis import strategies as st

import coordinator.cache_index as cache_index
from coordinator.cache_index import CacheIndex, split
from tandem.frames import Blob
from tandem.messages.membership import CacheDelta, Goodbye


def prefixes(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(8, "big") for number in numbers)


def delta(number: int, added=(), removed=(), *, snapshot: bool = False) -> CacheDelta:
    return CacheDelta(
        number=number,
        is_snapshot=snapshot,
        added=Blob(prefixes(*added)),
        removed=Blob(prefixes(*removed)),
    )


def known(*deltas: CacheDelta) -> CacheIndex:
    index = CacheIndex()
    index.expect("n0", 7)
    for each in deltas:
        index.update("n0", 7, each)
    return index


def match(index: CacheIndex, *numbers: int) -> int:
    return index.match(split(prefixes(*numbers)), "n0")


def test_the_longest_chain_from_the_start_counts() -> None:
    index = known(delta(1, [1, 2, 4], snapshot=True))
    assert match(index, 1, 2, 3, 4) == 2
    assert match(index, 3, 1, 2) == 0
    assert match(index, 1, 2, 4) == 3
    assert match(index) == 0


def test_deltas_follow_the_snapshot() -> None:
    index = known(delta(5, [1, 2], snapshot=True), delta(6, [3], [2]), delta(7, [2], []))
    assert match(index, 1, 2, 3) == 3
    assert not index.wants_snapshot("n0")


def test_what_left_and_came_back_between_two_heartbeats_is_there() -> None:
    assert match(known(delta(1, [1], snapshot=True), delta(2, [1], [1])), 1) == 1


def test_duplicates_and_older_deltas_are_ignored() -> None:
    index = known(
        delta(1, [1], snapshot=True), delta(2, [2]), delta(2, [], [1]), delta(1, [], snapshot=True)
    )
    assert match(index, 1, 2) == 2
    assert index.num_duplicates == 2
    assert not index.wants_snapshot("n0")


def test_a_gap_or_an_unknown_base_asks_for_a_snapshot_until_one_comes() -> None:
    index = known()
    assert index.wants_snapshot("n0")
    index.update("n0", 7, delta(3, [1]))
    assert index.wants_snapshot("n0")
    index.update("n0", 7, delta(4, [1], snapshot=True))
    assert not index.wants_snapshot("n0")
    index.update("n0", 7, delta(6, [2]))
    index.update("n0", 7, delta(7, [3]))
    assert index.wants_snapshot("n0")
    assert match(index, 1) == 1  # still a fair hint
    index.update("n0", 7, delta(8, [2], snapshot=True))
    assert (match(index, 1), match(index, 2)) == (0, 1)
    assert not index.wants_snapshot("n0")


def test_torn_prefixes_are_counted_and_a_snapshot_is_asked_for() -> None:
    torn = CacheDelta(number=2, is_snapshot=False, added=Blob(b"123"), removed=Blob())
    index = known(delta(1, [1], snapshot=True), torn)
    assert index.num_malformed == 1
    assert index.wants_snapshot("n0")
    assert index.num_prefixes("n0") == 0


def test_another_epoch_and_unknown_nodes_are_ignored() -> None:
    index = known(delta(1, [1], snapshot=True))
    index.update("n0", 6, delta(2, [], snapshot=True))
    index.update("n9", 7, delta(2, [1], snapshot=True))
    assert match(index, 1) == 1
    assert index.match([prefixes(1)], "n9") == 0
    index.expect("n0", 8)
    assert match(index, 1) == 0
    index.forget("n0")
    assert not index.wants_snapshot("n0")


def test_a_cache_beyond_the_bound_is_dropped_and_said_so(monkeypatch) -> None:
    monkeypatch.setattr(cache_index, "MAX_PREFIXES", 3)
    index = known(delta(1, [1, 2, 3], snapshot=True))
    text = index.update("n0", 7, delta(2, [4]))
    assert text is not None
    assert "n0" in text
    assert index.update("n0", 7, delta(3, [5])) is None
    assert (index.num_prefixes("n0"), index.wants_snapshot("n0")) == (0, False)


OPERATIONS = st.lists(
    st.tuples(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)), st.booleans()), max_size=12
)


@given(OPERATIONS, st.sets(st.integers(0, 11)))
def test_whatever_is_lost_a_snapshot_makes_the_index_equal_again(operations, lost) -> None:
    index, truth = known(), set()
    for number, (added, removed, is_snapshot) in enumerate(operations, 1):
        truth = (truth - removed) | added
        sent = truth if is_snapshot else added
        if number not in lost:
            index.update("n0", 7, delta(number, sent, removed, snapshot=is_snapshot))
        if not index.wants_snapshot("n0") and number not in lost:
            assert {n for n in range(10) if match(index, n)} == truth
    index.update("n0", 7, delta(99, truth, snapshot=True))
    assert {n for n in range(10) if match(index, n)} == truth


# --- in the coordinator ---------------------------------------------------------------------------


def test_heartbeats_are_answered_with_what_is_missing(cluster) -> None:
    cluster.join("p0", "prefill")
    assert cluster.beat("p0").wants_snapshot
    assert not cluster.beat("p0", cache=delta(1, [1, 2], snapshot=True)).wants_snapshot
    assert cluster.status().nodes[0].num_cached_prefixes == 2
    assert cluster.beat("p0", cache=delta(3, [3])).wants_snapshot
    cluster.send("p0", Goodbye(node_id="p0", incarnation=1, epoch=cluster.epochs["p0"]))
    cluster.join("p0", "prefill", incarnation=2)
    assert cluster.beat("p0", incarnation=2).wants_snapshot


def test_requests_go_where_their_prefix_is_until_the_saving_is_used_up(make_cluster) -> None:
    cluster = make_cluster(placement_policy="least_loaded")
    cluster.greet()
    for name in ("p0", "p1"):
        cluster.join(name, "prefill")
    cluster.join("d0", "decode")
    cluster.beat("p1", cache=delta(1, [1, 2, 3, 4, 5], snapshot=True))
    wanted = Blob(prefixes(1, 2, 3, 4, 5, 6))
    chosen = [
        cluster.place(i, num_prompt_tokens=96, max_output_tokens=4, prefix_hashes=wanted)[0]
        for i in range(12)
    ]
    names = [answer.prefill.node_id for answer in chosen]
    # A hit leaves 16 of 96 tokens: six requests there are as much work as one elsewhere.
    assert names[:5] == ["p1"] * 5
    assert 1 <= names.count("p0") <= 3


def test_pages_beyond_the_prompt_are_no_hit(cluster) -> None:
    cluster.join("p0", "prefill")
    cluster.join("p1", "prefill")
    cluster.join("d0", "decode")
    cluster.beat("p1", cache=delta(1, range(1, 100), snapshot=True))
    wanted = Blob(prefixes(*range(1, 100)))
    (answer,) = cluster.place(1, num_prompt_tokens=15, prefix_hashes=wanted)
    assert answer.prefill.node_id == "p0"
