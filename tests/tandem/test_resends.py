"""Questions that nobody answered: asked again after longer and longer pauses, then given up."""

from tandem.resends import MAX_PER_TICK, Resends


def asked_at(resends: Resends, label: str, num_ticks: int) -> list[int]:
    """At which ticks it is asked again."""
    return [tick for tick in range(1, num_ticks + 1) if label in list(resends.tick())]


def test_pauses_double_and_the_limit_ends_them() -> None:
    resends = Resends(first=2, limit=40)
    resends.add("a")
    assert asked_at(resends, "a", 39) == [2, 6, 14, 30]
    assert not resends.overdue()
    list(resends.tick())
    assert resends.overdue() == ["a"]


def test_an_answer_ends_it() -> None:
    resends = Resends(first=2, limit=40)
    resends.add("a")
    resends.forget("a")
    resends.forget("a")
    assert not asked_at(resends, "a", 50) and not resends.overdue() and not len(resends)


def test_backing_off_waits_a_pause_more_but_not_for_ever() -> None:
    resends = Resends(first=4, limit=100)
    resends.add("a")
    assert not asked_at(resends, "a", 3)
    resends.back_off()
    assert not asked_at(resends, "a", 2)
    resends.back_off()  # told once per second, while others of the same key go on talking
    assert asked_at(resends, "a", 3) == [2]


def test_many_are_asked_in_portions_and_none_is_left_out() -> None:
    resends = Resends(first=1, limit=1000)
    labels = {str(number) for number in range(3 * MAX_PER_TICK)}
    for label in labels:
        resends.add(label)
    portions = [list(resends.tick()) for _ in range(3)]
    assert all(len(portion) <= MAX_PER_TICK for portion in portions)
    seen = {label for portion in portions for label in portion}
    assert len(seen) > 1.5 * MAX_PER_TICK
    for _ in range(5):
        seen.update(resends.tick())
    assert seen == labels
