"""Whether to read a prefix from the decode node or to compute it, by what both cost lately. Pure.

Both costs are measured: a step's time over its prompt tokens, a read's time over its pages. Old
samples fade, and what was not chosen for long is believed to cost what it did at the start again,
so one slow read is not held against all later ones.
"""

PRIOR_TOKEN_S = 5e-4  # to compute one token of a prompt
PRIOR_PAGE_S = 2e-4  # to read one page
READ_LATENCY_S = 5e-3  # to the bulk thread and back, whatever is read
FADE = 0.9
RELAX = 0.98


class Rate:
    """Seconds per unit over recent samples, larger ones counting for more."""

    def __init__(self, prior_s: float, num_units: int) -> None:
        self._prior_s = prior_s
        self._num_units = float(num_units)
        self._seconds = prior_s * num_units

    @property
    def unit_s(self) -> float:
        """The present estimate."""
        return self._seconds / self._num_units

    def add(self, seconds: float, num_units: int) -> None:
        """A sample."""
        self._seconds = FADE * self._seconds + max(0.0, seconds)
        self._num_units = FADE * self._num_units + num_units

    def relax(self) -> None:
        """Return a little towards the prior."""
        self._seconds = RELAX * self._seconds + (1 - RELAX) * self._prior_s * self._num_units


class ReadCosts:
    """See the module."""

    def __init__(self) -> None:
        self._computing = Rate(PRIOR_TOKEN_S, 256)
        self._reading = Rate(PRIOR_PAGE_S, 16)
        self._step_began_at = 0.0
        self._num_step_tokens = 0

    def step_began(self, num_tokens: int, now: float) -> None:
        """A chunk of this many tokens is part of the step that begins now."""
        if now != self._step_began_at:
            self._step_began_at, self._num_step_tokens = now, 0
        self._num_step_tokens += num_tokens

    def step_ended(self, now: float) -> None:
        """To be called for each chunk; the first tells of the whole step."""
        if self._num_step_tokens:
            self._computing.add(now - self._step_began_at, self._num_step_tokens)
            self._num_step_tokens = 0

    def pages_read(self, num_pages: int, seconds: float) -> None:
        """A read returned."""
        self._reading.add(seconds, num_pages)

    def is_worth_reading(self, num_pages: int, page_size: int) -> bool:
        """Whether these pages come sooner by reading than by computing."""
        if num_pages < 1:
            return False
        read_s = READ_LATENCY_S + num_pages * self._reading.unit_s
        is_cheaper = read_s < num_pages * page_size * self._computing.unit_s
        if not is_cheaper:
            self._reading.relax()
        return is_cheaper
