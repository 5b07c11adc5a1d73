"""Which pages are kept for residents to grow into, beyond those that are promised. Pure.

Every request that keeps its pages until its end is entered with what it may still need and was not
promised. Others leave alone the pages by which the *oldest* of them can always finish, so there is
always one that does, and with it the next; a request whose pages were taken away comes back before
younger ones take their place. With all growth promised (`full`) nothing is left to keep.
"""

from dataclasses import dataclass
from typing import Literal

from scheduling.views import RequestKey

ReserveMode = Literal["full", "predicted", "none"]


@dataclass(frozen=True, slots=True)
class Overcommit:
    """How much of its growth a request is promised when it gets its pages.

    full: all of it (Orca). predicted: up to the length that nine of ten such answers stay below,
    all of it where there is no prediction. none: nothing (vLLM). What is not promised is taken as
    it comes, and may run out. `num_watermark_pages` stay free when new requests get pages.
    """

    reserve: ReserveMode = "full"
    num_watermark_pages: int = 0


@dataclass(frozen=True, slots=True)
class Grower:
    """A request that keeps its pages and may need `num_pages` more; `age`: lower is older."""

    key: RequestKey
    age: int
    num_pages: int


class GrowthBook:
    """See the module. `num_changes` grows whenever less may be kept than before."""

    def __init__(self, overcommit: Overcommit) -> None:
        self._overcommit = overcommit
        self._unpromised: dict[RequestKey, tuple[int, int]] = {}  # age, pages
        self._displaced: dict[RequestKey, tuple[int, int]] = {}  # age, pages to come back with
        self._expected: dict[RequestKey, int] = {}
        self._oldest: RequestKey | None = None
        self.num_changes = 0

    def expect(self, key: RequestKey, num_pages: int) -> None:
        """A prediction: it will probably not need more than so many pages in all."""
        self._expected[key] = num_pages

    def over(self, key: RequestKey) -> None:
        """The request has ended: its prediction is of no use any more."""
        self._expected.pop(key, None)

    def promise(self, grower: Grower, num_pages: int) -> int:
        """How much of its growth to promise a request that gets `num_pages` now."""
        match self._overcommit.reserve:
            case "full":
                return grower.num_pages
            case "none":
                return 0
            case "predicted":
                expected = self._expected.get(grower.key)
                if expected is None:
                    return grower.num_pages
                return min(grower.num_pages, max(0, expected - num_pages))

    def margin(self, grower: Grower | None, num_promised: int) -> int:
        """Pages that must stay free when this one gets its pages and promise.

        The oldest needs all of its own growth and nothing more. One that does not grow (None) takes
        pages for a while only, and leaves the same alone as the youngest.
        """
        oldest = self._oldest
        if grower is not None and (
            oldest is None or (grower.age, grower.key) < (self._unpromised[oldest][0], oldest)
        ):
            return grower.num_pages - num_promised
        margin = self.num_kept
        if oldest is not None:
            margin += self._overcommit.num_watermark_pages
        older = [
            (age, num_pages)
            for key, (age, num_pages) in self._displaced.items()
            if grower is None or (age, key) < (grower.age, grower.key)
        ]
        return margin + (min(older)[1] if older else 0)

    def enter(self, grower: Grower, num_promised: int) -> None:
        """It has its pages."""
        self._displaced.pop(grower.key, None)
        self._unpromised[grower.key] = (grower.age, grower.num_pages - num_promised)
        self._changed()

    def grew(self, key: RequestKey, num_pages: int) -> None:
        """It took pages that were not promised to it."""
        age, num_left = self._unpromised[key]
        self._unpromised[key] = (age, max(0, num_left - num_pages))

    def leave(self, key: RequestKey) -> None:
        """It holds no pages any more, and waits for none."""
        self._unpromised.pop(key, None)
        self._displaced.pop(key, None)
        self._changed()

    def displace(self, key: RequestKey, age: int, num_pages: int) -> None:
        """Its pages were taken away; it needs so many to come back."""
        self._displaced[key] = (age, num_pages)

    def num_unpromised(self, key: RequestKey) -> int:
        """Pages that it may still need and was not promised."""
        return self._unpromised.get(key, (0, 0))[1]

    def may_grow(self, key: RequestKey, num_pages: int, num_available: int) -> bool:
        """Whether it may take pages that were not promised to it."""
        return num_pages + (0 if key == self._oldest else self.num_kept) <= num_available

    def is_oldest(self, key: RequestKey) -> bool:
        """Whether the pages that others leave alone are for this request."""
        return key == self._oldest

    @property
    def has_displaced(self) -> bool:
        """Whether some request waits to come back."""
        return bool(self._displaced)

    @property
    def num_watermark_pages(self) -> int:
        """Pages that stay free when new requests get theirs."""
        return self._overcommit.num_watermark_pages

    @property
    def num_kept(self) -> int:
        """Pages by which the oldest can finish, beyond its promise."""
        oldest = self._oldest
        return 0 if oldest is None else self._unpromised[oldest][1]

    def _changed(self) -> None:
        self.num_changes += 1
        if self._overcommit.reserve != "full":  # else whoever has pages was promised all it needs
            ages = self._unpromised
            self._oldest = min(ages, key=lambda k: (ages[k][0], k), default=None)
