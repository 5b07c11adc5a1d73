"""Token buckets: what a peer may send, and that others do not pay for it."""

from hypothesis import given
from hypothesis import strategies as st

from tandem.rates import MAX_PEERS, TELL_S, Rate, TokenBuckets


def test_a_burst_then_the_rate() -> None:
    buckets = TokenBuckets(Rate(per_s=10, burst=5))
    assert [buckets.judge("a", 0.0) for _ in range(7)] == ["take"] * 5 + ["tell", "drop"]
    assert [buckets.judge("a", 0.1) for _ in range(2)] == ["take", "drop"]
    assert buckets.judge("b", 0.1) == "take"
    assert [buckets.judge("a", 100.0) for _ in range(6)] == ["take"] * 5 + ["tell"]


def test_a_flood_is_told_once_per_second() -> None:
    buckets = TokenBuckets(Rate(per_s=1, burst=1))
    told = [buckets.judge("a", i / 1000).count("tell") for i in range(5000)]
    assert sum(told) == 5 and TELL_S == 1.0


def test_the_number_of_peers_is_bounded() -> None:
    buckets = TokenBuckets(Rate(per_s=0.001, burst=1))
    assert buckets.judge("first", 0.0) == "take"
    for peer in range(MAX_PEERS):
        assert buckets.judge(peer, 0.0) == "take"
    assert len(buckets._buckets) == MAX_PEERS
    assert buckets.judge("first", 0.0) == "take"  # forgotten
    assert buckets.judge(MAX_PEERS - 1, 0.0) == "tell"  # not forgotten


@given(st.lists(st.floats(0, 0.5), max_size=300), st.floats(1, 100), st.floats(1, 50))
def test_no_peer_gets_more_than_burst_and_rate(
    pauses: list[float], per_s: float, burst: float
) -> None:
    buckets, now, num_taken = TokenBuckets(Rate(per_s=per_s, burst=burst)), 0.0, 0
    for pause in pauses:
        now += pause
        num_taken += buckets.judge("a", now) == "take"
    assert num_taken <= burst + per_s * now + 1e-6
    assert buckets.judge("a", now - 5) in ("take", "drop", "tell")  # a clock that went back
