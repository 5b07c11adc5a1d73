"""What batch policies share: a step that keeps account of rows, tokens and pages. Pure."""

from collections.abc import Iterable, Sequence, Set
from operator import attrgetter

from scheduling.views import NodeView, PreemptMode, RequestKey, SequenceView, StepPlan

_AGE, _PRIORITY = attrgetter("age"), attrgetter("priority")


def prefill_chunks(
    prompts: Iterable[SequenceView], budget: int
) -> tuple[tuple[RequestKey, int], ...]:
    """Chunks in this order until `budget` tokens are spent."""
    chunks = []
    for sequence in prompts:
        if budget <= 0:
            break
        num_tokens = min(sequence.num_left, budget)
        chunks.append((sequence.key, num_tokens))
        budget -= num_tokens
    return tuple(chunks)


def oldest_first(sequences: Iterable[SequenceView]) -> list[SequenceView]:
    """Higher priority first, then placement order."""
    found = sorted(sequences, key=_AGE)
    found.sort(key=_PRIORITY, reverse=True)  # equals keep their order
    return found


def num_pages_at_end(sequence: SequenceView, page_size: int) -> int:
    """Pages at full length; the KV of the last token is never needed."""
    return -(-max(sequence.max_total_tokens - 1, sequence.num_tokens) // page_size)


def num_pages_to_grow(sequence: SequenceView, page_size: int) -> int:
    """Free pages that the next token of a request with KV takes, beyond those promised to it."""
    num_missing = -(-sequence.num_tokens // page_size) - sequence.num_pages
    return max(0, num_missing - sequence.num_promised)


def num_pages_to_return(sequence: SequenceView, page_size: int) -> int:
    """Free pages that a swapped request takes when it comes back."""
    return max(sequence.num_pages + sequence.num_promised, -(-sequence.num_tokens // page_size))


def is_reserved(sequence: SequenceView, page_size: int) -> bool:
    """Whether it has, or was promised, every page that it may ever need."""
    num_pages = sequence.num_pages + sequence.num_promised
    return num_pages >= num_pages_at_end(sequence, page_size)


class StepBuilder:
    """A step under construction, and the rows, tokens and free pages that are left.

    Call `decode`, `admit` and `prefill` in the order in which they may claim, then `plan`.
    `num_tokens`: the step's token budget, the node's limit where it is lower.
    """

    def __init__(self, view: NodeView, num_tokens: int | None = None) -> None:
        limit = view.max_num_batched_tokens
        self.view = view
        self.num_tokens = limit if num_tokens is None else min(limit, num_tokens)
        self._budget = self.num_tokens
        self.num_rows = view.max_num_seqs - len(view.running)
        self.num_pages = view.num_free_pages
        self.preempted: dict[RequestKey, PreemptMode] = {}
        self.is_short = False  # of pages: some row is held, or has given way
        self._held: SequenceView | None = None
        self._swapped = {s.key for s in view.swapped}
        self._decoding: dict[RequestKey, int] = {}  # -> pages that its next token claims
        self._admitted: list[RequestKey] = []
        self._chunks: list[tuple[RequestKey, int]] = []

    @property
    def decoding(self) -> Set[RequestKey]:
        """Rows of the step so far."""
        return self._decoding.keys()

    @property
    def num_taken(self) -> int:
        """Tokens of the step so far."""
        return self._budget - self.num_tokens

    def is_swapped(self, sequence: SequenceView) -> bool:
        """Whether its KV is in host memory."""
        return sequence.key in self._swapped

    def pages_to_admit(self, sequence: SequenceView) -> int:
        """Free pages that a waiting or swapped request takes when it is admitted."""
        if self.is_swapped(sequence):
            return num_pages_to_return(sequence, self.view.page_size)
        return num_pages_to_grow(sequence, self.view.page_size)

    def preempt(self, sequence: SequenceView) -> None:
        """Take row and pages from a running request; the node chooses the cheapest way."""
        self.preempted[sequence.key] = "auto"
        self.is_short = True
        self.num_rows += 1
        self.num_pages += sequence.num_pages + sequence.num_promised
        if sequence.key in self._decoding:
            self.num_pages += self._decoding.pop(sequence.key)
            self.num_tokens += 1

    def decode(
        self, rows: Sequence[SequenceView], keeping: Sequence[SequenceView] | None = None
    ) -> None:
        """The next token of these running requests; where pages run out others lose theirs.

        `keeping`: all running requests, those that keep their pages longest first; `rows` where it
        is left out. A row that is itself the next to go is held while anything else runs: whoever
        ends frees pages, and holding loses no work.
        """
        needs = [num_pages_to_grow(row, self.view.page_size) for row in rows]
        if self._take_all(rows, needs):
            return
        victims = list(rows if keeping is None else keeping)
        for row, need in zip(rows, needs, strict=True):
            if row.key in self.preempted or self.num_tokens <= 0:
                continue
            while need > self.num_pages and victims and victims[-1].key != row.key:
                victim = victims.pop()
                if victim.key not in self.preempted:
                    self.preempt(victim)
            if need <= self.num_pages:
                self._claim(row, need)
            else:
                self._held = row
                self.is_short = True

    def _take_all(self, rows: Sequence[SequenceView], needs: Sequence[int]) -> bool:
        """All rows at once, where nobody has to give way, as in most steps."""
        num_pages = sum(needs)
        is_short = num_pages > self.num_pages or len(rows) > self.num_tokens
        if is_short or self.preempted or self._decoding:
            return False
        self._decoding = {row.key: need for row, need in zip(rows, needs, strict=True)}
        self.num_pages -= num_pages
        self.num_tokens -= len(self._decoding)
        return True

    def try_decode(self, row: SequenceView) -> bool:
        """The next token of a running request, where its page is free; preempts nobody."""
        need = num_pages_to_grow(row, self.view.page_size)
        if row.key in self.preempted or need > self.num_pages or self.num_tokens <= 0:
            return False
        self._claim(row, need)
        return True

    def _claim(self, row: SequenceView, num_pages: int) -> None:
        self._decoding[row.key] = num_pages
        self.num_pages -= num_pages
        self.num_tokens -= 1

    def admit(self, candidates: Sequence[SequenceView]) -> None:
        """Admit in this order until one does not fit; nobody while pages are short (vLLM V1)."""
        if self.is_short:
            return
        for sequence in candidates:
            if not self.try_admit(sequence):
                break
        self.unstick(candidates)

    def try_admit(self, sequence: SequenceView) -> bool:
        """Admit a waiting or swapped request with its first row; False where it does not fit."""
        need = self.pages_to_admit(sequence)
        if self.num_rows <= 0 or self.num_tokens <= 0 or not self.fits(sequence, need):
            return False
        self._admitted.append(sequence.key)
        self.num_rows -= 1
        self._claim(sequence, need)
        return True

    def fits(self, sequence: SequenceView, need: int, num_coming: int = 0) -> bool:
        """Whether `need` pages are free once `num_coming` others are, and leave the watermark.

        The watermark is for the growth of running requests: it holds nobody back where none runs,
        nor one that was promised its pages.
        """
        if need == 0 and is_reserved(sequence, self.view.page_size):
            return True
        is_alone = not (self._decoding or self.view.running)
        watermark = 0 if is_alone else self.view.num_watermark_pages
        return need + watermark <= self.num_pages + num_coming

    def unstick(self, candidates: Sequence[SequenceView]) -> None:
        """Where nothing runs, as waiting requests hold the pages: admit one of those.

        Without a page for its row it gives way to the others in the next step, as only running
        requests can.
        """
        is_going_on = self._admitted or self.view.prefill or self.view.running
        if is_going_on or self.num_rows <= 0:
            return
        waiting = [s for s in candidates if not self.is_swapped(s)]
        if any(self.try_admit(s) for s in waiting):
            return
        if waiting:
            self._admitted.append(waiting[0].key)
            self.num_rows -= 1

    def prefill(self, prompts: Iterable[SequenceView], num_tokens: int | None = None) -> None:
        """Chunks in this order within what is left of the budget, and within `num_tokens`."""
        budget = self.num_tokens if num_tokens is None else min(num_tokens, self.num_tokens)
        chunks = prefill_chunks(prompts, budget)
        self.num_tokens -= sum(n for _, n in chunks)
        self._chunks += chunks

    def plan(
        self, *, wake_at: float | None = None, padding_contexts: tuple[int, ...] = ()
    ) -> StepPlan:
        """What was decided. A step that only moves requests asks to be planned again at once."""
        has_work = self._decoding or self._chunks
        if not has_work and self._held is not None and self._held.key not in self.preempted:
            self.preempt(self._held)
        if not has_work and (self.preempted or self._admitted):
            wake_at = self.view.now
        return StepPlan(
            decode=tuple(self._decoding),
            prefill=tuple(self._chunks),
            admit=tuple(self._admitted),
            preempt=tuple(self.preempted.items()),
            padding_contexts=padding_contexts,
            wake_at=wake_at,
        )
