"""The page ledger under random use: conservation, no page handed out twice, promises kept."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from node.ledger import PageLedger, PageState

NUM_PAGES = 24


class LedgerMachine(RuleBasedStateMachine):
    """Requests come by local prefill, by grant and by prefix hit, and end in every phase."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = PageLedger(NUM_PAGES)
        self.active: list[tuple[list[int], int]] = []
        self.granted: list[list[int]] = []
        self.draining: list[list[int]] = []
        self.read: list[list[int]] = []  # by remote readers whose requests have ended

    @rule(num_pages=st.integers(1, 8), num_promised=st.integers(0, 4))
    def begin(self, num_pages: int, num_promised: int) -> None:
        if num_pages + num_promised <= self.ledger.num_available:
            pages = self.ledger.take(num_pages, PageState.ACTIVE)
            self.ledger.promise(num_promised)
            self.active.append((pages, num_promised))

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.active) - 1))
        pages, num_promised = self.active[at]
        if num_promised:
            new = self.ledger.take(1, PageState.ACTIVE, promised=True)
            self.active[at] = (pages + new, num_promised - 1)

    @precondition(lambda self: self.active)
    @rule(data=st.data(), keep=st.booleans())
    def end(self, data: st.DataObject, keep: bool) -> None:
        pages, num_promised = self.active.pop(data.draw(st.integers(0, len(self.active) - 1)))
        self.ledger.unpromise(num_promised)
        self.ledger.release(pages, cache=frozenset(pages) if keep else frozenset())

    @rule(num_pages=st.integers(1, 6))
    def hit(self, num_pages: int) -> None:
        cached = [p for p in range(NUM_PAGES) if self.ledger.state(p) is PageState.CACHED]
        if len(cached) >= num_pages and self.ledger.num_available >= num_pages:
            self.ledger.hold(cached[:num_pages])
            self.active.append((cached[:num_pages], 0))

    @rule(num_pages=st.integers(1, 6))
    def grant(self, num_pages: int) -> None:
        if num_pages <= self.ledger.num_available:
            self.granted.append(self.ledger.take(num_pages, PageState.GRANTED))

    @precondition(lambda self: self.granted)
    @rule(is_committed=st.booleans())
    def finish_grant(self, is_committed: bool) -> None:
        pages = self.granted.pop()
        if is_committed:
            self.ledger.move(pages, PageState.READY)
            self.ledger.move(pages, PageState.ACTIVE)
            self.active.append((pages, 0))
        else:
            self.ledger.move(pages, PageState.DRAINING)
            self.draining.append(pages)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def match_and_withdraw(self, data: st.DataObject) -> None:
        """A grant that matched pages of another request, and was taken back."""
        pages, _ = data.draw(st.sampled_from(self.active))
        self.ledger.hold(pages)
        self.ledger.drain(pages)
        self.read.append(pages)

    @precondition(lambda self: self.read)
    @rule(keep=st.booleans())
    def prove_read(self, keep: bool) -> None:
        pages = self.read.pop()
        self.ledger.release(pages, cache=frozenset(pages) if keep else frozenset())

    @precondition(lambda self: self.draining)
    @rule()
    def prove_drained(self) -> None:
        self.ledger.release(self.draining.pop())

    @invariant()
    def holds(self) -> None:
        self.ledger.check()
        counts = self.ledger.counts()
        assert counts.draining == sum(map(len, self.draining))
        held = {page for pages, _ in self.active for page in pages}
        held |= {page for pages in self.read for page in pages}
        assert all(self.ledger.state(page) is PageState.ACTIVE for page in held)
        assert counts.granted == sum(map(len, self.granted))
        assert self.ledger.num_promised == sum(n for _, n in self.active)


LedgerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestLedger = LedgerMachine.TestCase


def test_eviction_takes_the_least_recently_used_first() -> None:
    ledger = PageLedger(4)
    first = ledger.take(2, PageState.ACTIVE)
    second = ledger.take(2, PageState.ACTIVE)
    ledger.release(first, cache=frozenset(first))
    ledger.release(second, cache=frozenset(second))
    assert ledger.take(2, PageState.ACTIVE) == first
    assert ledger.take_evicted() == first
    assert ledger.take_evicted() == []


def test_a_shared_page_stays_until_its_last_holder_lets_go() -> None:
    ledger = PageLedger(2)
    pages = ledger.take(1, PageState.ACTIVE)
    ledger.hold(pages)
    ledger.release(pages)
    assert ledger.state(pages[0]) is PageState.ACTIVE
    ledger.release(pages)
    assert ledger.state(pages[0]) is PageState.FREE


def test_illegal_transitions_and_double_release_are_caught() -> None:
    ledger = PageLedger(2)
    pages = ledger.take(1, PageState.GRANTED)
    with pytest.raises(AssertionError, match="GRANTED -> ACTIVE"):
        ledger.move(pages, PageState.ACTIVE)
    with pytest.raises(AssertionError, match="GRANTED -> FREE"):
        ledger.release(pages)
    with pytest.raises(AssertionError, match="held by nobody"):
        PageLedger(1).release([0])


def test_matched_pages_drain_only_where_nobody_else_holds_them() -> None:
    ledger = PageLedger(2)
    shared, alone = ledger.take(2, PageState.ACTIVE)
    ledger.hold([shared])
    ledger.drain([shared, alone])
    assert ledger.state(shared) is PageState.ACTIVE
    assert ledger.state(alone) is PageState.DRAINING
    ledger.hold([alone])  # another request matched it meanwhile
    ledger.drain([alone])
    ledger.release([alone], cache=frozenset([alone]))
    assert ledger.state(alone) is PageState.DRAINING
    ledger.release([alone], cache=frozenset([alone]))
    assert ledger.state(alone) is PageState.CACHED


def test_held_pages_are_never_evicted() -> None:
    ledger = PageLedger(4)
    pages = ledger.take(4, PageState.ACTIVE)
    ledger.release(pages, cache=frozenset(pages))
    ledger.hold(pages[:3])
    assert ledger.num_available == 1
    assert ledger.take(1, PageState.GRANTED) == pages[3:]
    assert ledger.take_evicted() == pages[3:]
    with pytest.raises(AssertionError):
        ledger.take(1, PageState.GRANTED)
