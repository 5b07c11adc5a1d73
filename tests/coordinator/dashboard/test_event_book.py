"""Numbered lines: bounded, thinned where one thing happens to many, kept over restarts."""

from coordinator.dashboard.event_book import MAX_EVENTS, EventBook
from tandem.messages.operations import Event


def test_numbers_grow_and_readers_go_on_after_theirs() -> None:
    book = EventBook()
    for text in "abc":
        book.add("member", text, 1.0)
    assert [(event.number, event.text) for event in book.after(1)] == [(2, "b"), (3, "c")]
    assert book.after(3) == book.after(99) == []
    assert len(book.after(-5)) == 3


def test_many_failures_in_a_second_are_a_few_lines_and_a_count() -> None:
    book = EventBook()
    for number in range(50):
        book.add("request", f"request {number} failed", 1.0)
    book.tick(2.0)
    texts = [event.text for event in book.after(0)]
    assert len(texts) == 6 and texts[-1] == "and 45 more of this kind in one second"
    book.tick(3.0)
    assert book.last_number == 6
    assert book.add("request", "another", 4.0) is not None


def test_memory_is_bounded_and_decisions_outlive_other_lines() -> None:
    book = EventBook()
    book.add("decision", "roles: turns d0", 1.0)
    for number in range(MAX_EVENTS + 10):
        book.add("member", "x" * 5000 if number == 0 else "y", 2.0)
    assert len(book.after(0)) == MAX_EVENTS
    assert [event.text for event in book.decisions()] == ["roles: turns d0"]
    assert max(len(event.text) for event in book.after(0)) <= 1000


def test_numbers_go_on_after_a_restart() -> None:
    book = EventBook()
    book.restore([Event(number=41, unix_s=1.0, kind="decision", text="before")])
    assert book.take_new() == []
    book.add("member", "after", 2.0)
    assert [event.number for event in book.after(0)] == [41, 42]
    assert [event.number for event in book.take_new()] == [42]
