"""What an owner remembers of its writers."""

from kv_transfer import writers as writers_module
from kv_transfer.writers import Writers

A, B = b"node/p0/1", b"node/p1/1"


def test_a_writer_is_admitted_once_it_chose() -> None:
    writers = Writers()
    assert writers.greet(A, None) is None
    assert writers.chosen(A) is None
    assert writers.choose(A, "zmq") is None
    assert writers.chosen(A) == "zmq"
    assert writers.chosen(B) is None


def test_a_choice_holds_for_the_life_of_the_process() -> None:
    """What proves that a writer has stopped depends on it."""
    writers = Writers()
    writers.greet(A, None)
    assert writers.map(A, 12)
    assert writers.choose(A, "shared_memory") is None
    assert "chose shared_memory before" in (writers.choose(A, "zmq") or "")
    assert writers.chosen(A) == "shared_memory"


def test_mapped_memory_needs_a_process_that_was_noted() -> None:
    writers = Writers()
    writers.greet(A, None)
    assert "without having fetched" in (writers.choose(A, "shared_memory") or "")
    assert writers.choose(B, "zmq") is not None, "it never said hello"


def test_w21_the_pool_is_handed_to_greeted_writers_and_one_process_each() -> None:
    writers = Writers()
    assert not writers.map(A, 12)
    writers.greet(A, None)
    assert writers.map(A, 12)
    assert writers.map(A, 12), "its link was lost and opened again"
    assert not writers.map(A, 13), "another process under its identity"


def test_a_key_holds_for_the_life_of_the_process() -> None:
    writers = Writers()
    assert writers.greet(A, "k1") is None
    assert writers.greet(A, "k1") is None
    assert writers.greet(A, "k2") == "it came with another key before"


def test_whoever_is_gone_begins_anew() -> None:
    writers = Writers()
    writers.greet(A, None)
    writers.map(A, 12)
    writers.choose(A, "shared_memory")
    writers.gone(A)
    writers.gone(B)
    assert writers.chosen(A) is None
    writers.greet(A, None)
    assert writers.choose(A, "shared_memory") is not None


def test_memory_is_bounded_and_mappers_are_never_forgotten(monkeypatch) -> None:
    monkeypatch.setattr(writers_module, "MAX_WRITERS", 2)
    writers = Writers()
    writers.greet(A, None)
    writers.map(A, 12)
    writers.greet(B, None)
    writers.choose(B, "zmq")
    assert writers.greet(b"node/p2/1", None) is None
    assert writers.chosen(B) is None
    assert writers.map(A, 12)
    writers.map(b"node/p2/1", 13)
    assert "2 processes map" in (writers.greet(b"node/p3/1", None) or "")
