"""The fluid limit: its formulae derived again by iteration, and why admitting all at once fails."""

import pytest

from scheduling.batch.fluid import RequestType, entries_at_rows, equilibrium

TYPES = [RequestType(6.0, 20, 100), RequestType(4.0, 20, 200), RequestType(2.0, 20, 300)]


def test_the_equilibrium_is_where_iterating_leads() -> None:
    """Requests that came in the last iteration enter the next; its time follows from their KV."""
    base_s, token_s = 0.02, 1e-6
    iteration_s = base_s
    for _ in range(200):
        num_tokens = 0.0
        for t in TYPES:
            entering = t.rate * iteration_s
            # A request holds l + s tokens in stage s = 0..l'.
            num_tokens += sum(entering * (t.num_prompt + s) for s in range(int(t.num_answer) + 1))
        iteration_s = base_s + token_s * num_tokens
    found = equilibrium(TYPES, base_s=base_s, token_s=token_s)
    assert found is not None
    assert found.iteration_s == pytest.approx(iteration_s, rel=1e-9)
    assert found.num_tokens == pytest.approx(num_tokens, rel=1e-9)
    assert found.entries == pytest.approx([t.rate * iteration_s for t in TYPES])


def test_there_is_none_where_tokens_come_faster_than_they_are_made() -> None:
    load = sum(t.rate * t.token_iterations for t in TYPES)
    assert equilibrium(TYPES, base_s=0.02, token_s=0.999 / load) is not None
    assert equilibrium(TYPES, base_s=0.02, token_s=1.0 / load) is None


def test_entries_fill_the_rows() -> None:
    entries = entries_at_rows(TYPES, 64)
    rows = sum(n * t.num_stages for n, t in zip(entries, TYPES, strict=True))
    assert rows == pytest.approx(64)
    assert entries[0] / entries[2] == pytest.approx(3.0)
    assert entries_at_rows([RequestType(0.0, 1, 1)], 8) == (0.0,)


def iterate(first: int, second: int, *, capacity: int, most: int) -> tuple[int, int, int, int]:
    """One iteration with prompts of 1 token and 2 tokens of answer, and an endless queue.

    In: requests in their first and second stage, which hold 1 and 2 tokens. Out: the same after it,
    how many ended and how many were evicted to make room.
    """
    ended, second = second, first
    evicted = max(0, 2 * second - capacity + 1) // 2
    second -= evicted
    first = min(most, capacity - 2 * second)
    return first, second, ended, evicted


@pytest.mark.parametrize(
    ("first", "second", "most", "per_iteration", "evictions"),
    [(6, 3, 12, 3.0, 6), (4, 4, 4, 4.0, 0)],
)
def test_what_fits_is_not_what_should_be_admitted(
    first: int, second: int, most: int, per_iteration: float, evictions: int
) -> None:
    """The paper's cascade: both states hold 12 tokens, the capacity; only one is stable.

    First come, first served admits all that fits: from [6, 3] it cycles through [0, 6] and [12, 0],
    and evicts 6 in every other iteration. Four per iteration, the fluid limit, never evicts.
    """
    total_ended, seen = 0, []
    for n in range(100):
        first, second, ended, evicted = iterate(first, second, capacity=12, most=most)
        if n >= 20:
            total_ended += ended
            seen.append(evicted)
    assert total_ended / 80 == pytest.approx(per_iteration)
    assert max(seen) == evictions
