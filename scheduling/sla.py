"""Service level classes: their targets, what a request resolves to, and whether it was kept. Pure.

A target is a duration: time to first token (TTFT) and mean time per output token after it (TPOT).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tandem.messages.common import SlaTargets

DEFAULT_CLASSES = (
    "interactive:500:50:0.99",
    "standard:2000:100:0.95",
    "batch:30000:500:0.9",
)


class UnknownSlaClass(ValueError):
    """A request named a class that is not on offer."""


@dataclass(frozen=True, slots=True)
class SlaClass:
    """One class: targets in milliseconds and the share of requests that must keep both."""

    name: str
    ttft_ms: float
    tpot_ms: float
    attainment: float

    @property
    def targets(self) -> SlaTargets:
        """The targets as they travel with a request."""
        return SlaTargets(sla_class=self.name, ttft_ms=self.ttft_ms, tpot_ms=self.tpot_ms)


@dataclass(frozen=True, slots=True)
class SlaTable:
    """The classes on offer by name, and the one for requests that name none."""

    classes: dict[str, SlaClass]
    default: str

    def resolve(
        self, sla_class: str | None, ttft_ms: float | None, tpot_ms: float | None
    ) -> SlaTargets:
        """Targets of a request; its own are clamped to what the tightest and loosest class have.

        Raises UnknownSlaClass, listing the known ones.
        """
        chosen = self.classes.get(sla_class or self.default)
        if chosen is None:
            raise UnknownSlaClass(
                f"there is no SLA class {sla_class!r}: use one of {', '.join(self.classes)}, or "
                f"none for {self.default}"
            )
        ttfts = [each.ttft_ms for each in self.classes.values()]
        tpots = [each.tpot_ms for each in self.classes.values()]
        return SlaTargets(
            sla_class=chosen.name,
            ttft_ms=_clamped(ttft_ms, chosen.ttft_ms, ttfts),
            tpot_ms=_clamped(tpot_ms, chosen.tpot_ms, tpots),
        )


def _clamped(own: float | None, of_class: float, on_offer: Iterable[float]) -> float:
    if own is None:
        return of_class
    limits = sorted(on_offer)
    return min(max(own, limits[0]), limits[-1])


def parse_sla_table(entries: Iterable[str], default: str) -> SlaTable:
    """The table of `name:ttft_ms:tpot_ms:attainment` entries. Raises ValueError with advice."""
    classes: dict[str, SlaClass] = {}
    for entry in entries:
        parsed = _parse_class(entry)
        if parsed.name in classes:
            raise ValueError(f"the SLA class {parsed.name} is given twice: leave one out")
        classes[parsed.name] = parsed
    if default not in classes:
        raise ValueError(
            f"the default SLA class {default!r} is none of {', '.join(classes) or 'the classes'}: "
            "name one of them, or add it"
        )
    return SlaTable(classes, default)


def _parse_class(entry: str) -> SlaClass:
    name, *numbers = entry.split(":")
    try:
        ttft_ms, tpot_ms, attainment = (float(number) for number in numbers)
    except ValueError:
        raise ValueError(
            f"the SLA class {entry!r} is not name:ttft_ms:tpot_ms:attainment; write it as in "
            f"{DEFAULT_CLASSES[0]}"
        ) from None
    if not (name and 0 < ttft_ms < 1e9 and 0 < tpot_ms < 1e9 and 0 < attainment <= 1):
        raise ValueError(
            f"the SLA class {entry!r} needs a name, targets above 0 ms, and an attainment above 0 "
            "and at most 1"
        )
    return SlaClass(name, ttft_ms, tpot_ms, attainment)


def is_attained(targets: SlaTargets, ttft_s: float, tpot_s: float | None) -> bool:
    """Whether both targets were kept; `tpot_s` is None where there was no second token."""
    kept_ttft = ttft_s * 1e3 <= targets.ttft_ms
    return kept_ttft and (tpot_s is None or tpot_s * 1e3 <= targets.tpot_ms)
