"""Which pages are kept for growth, and for whom."""

from node.growth import Grower, GrowthBook, Overcommit

OLD = Grower((b"old", 1), 1, 6)
YOUNG = Grower((b"young", 1), 2, 4)


def book(reserve: str = "none", num_watermark_pages: int = 0) -> GrowthBook:
    return GrowthBook(Overcommit(reserve, num_watermark_pages))  # type: ignore[arg-type]


def test_full_promises_all_and_keeps_nothing_beside() -> None:
    full = book("full")
    assert full.promise(OLD, 3) == 6
    full.enter(OLD, 6)
    assert (full.num_kept, full.margin(YOUNG, 4), full.margin(None, 0)) == (0, 0, 0)
    assert not full.is_oldest(OLD.key)


def test_predicted_promises_what_is_expected_and_all_where_nothing_is() -> None:
    predicted = book("predicted")
    assert predicted.promise(OLD, 3) == 6
    predicted.expect(OLD.key, 5)
    assert predicted.promise(OLD, 3) == 2
    assert predicted.promise(OLD, 8) == 0
    predicted.expect(OLD.key, 100)
    assert predicted.promise(OLD, 3) == 6
    predicted.over(OLD.key)
    predicted.over(OLD.key)
    assert predicted.promise(OLD, 5) == 6


def test_the_oldest_needs_all_of_its_own_growth_and_others_leave_it_alone() -> None:
    none = book(num_watermark_pages=2)
    assert none.promise(OLD, 3) == 0
    assert none.margin(OLD, 0) == 6, "no watermark: whoever is alone may have the whole pool"
    none.enter(OLD, 0)
    assert none.margin(YOUNG, 0) == 6 + 2
    assert none.margin(None, 0) == 6 + 2
    assert none.may_grow(OLD.key, 1, 1)
    none.enter(YOUNG, 0)
    assert not none.may_grow(YOUNG.key, 1, 6)
    assert none.may_grow(YOUNG.key, 1, 7)


def test_what_the_oldest_took_is_kept_no_more_and_the_next_follows_it() -> None:
    none = book()
    none.enter(YOUNG, 1)
    none.enter(OLD, 0)
    none.grew(OLD.key, 2)
    assert none.num_kept == 4
    changes = none.num_changes
    none.leave(OLD.key)
    assert none.num_changes > changes, "a claim that was refused may fit now"
    assert none.is_oldest(YOUNG.key) and none.num_kept == none.num_unpromised(YOUNG.key) == 3
    none.leave(YOUNG.key)
    assert none.num_kept == none.num_unpromised(YOUNG.key) == 0


def test_the_displaced_come_back_before_younger_ones() -> None:
    none = book()
    none.enter(YOUNG, 0)
    none.displace(OLD.key, OLD.age, 5)
    younger = Grower((b"younger", 1), 3, 1)
    assert none.margin(younger, 0) == 4 + 5
    assert none.margin(None, 0) == 4 + 5
    assert none.margin(Grower((b"older", 1), 0, 1), 0) == 1
    assert none.margin(OLD, 0) == 6, "it does not wait for itself"
    none.enter(OLD, 0)
    assert none.margin(younger, 0) == 6
