"""Prefill policies by name, with typed options. Pure.

To add one: its class, and an entry below; tests/scheduling/test_prefill_catalogue.py then holds it
to what every policy must keep.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

from scheduling.batch.options import (
    NoOptions,
    check_names,
    option_fields,
    parse_options,
    require,
)
from scheduling.prefill import ranked
from scheduling.prefill.fifo import FifoPrefill
from scheduling.prefill.guard import WaitGuard
from scheduling.prefill.niyama import NiyamaOptions, NiyamaPrefill
from scheduling.prefill.shared_prefix import SharedPrefixFirst
from scheduling.views import PrefillPolicy
from tandem.config import DataclassLike, Help


@dataclass(frozen=True, slots=True)
class PrefillEntry:
    """A policy on offer, and how to build it from its options."""

    summary: str
    build: Callable[[Any], PrefillPolicy]
    options: type[DataclassLike] = NoOptions


@dataclass(frozen=True, slots=True)
class CommonPrefillOptions:
    """What goes around any policy."""

    guard_ms: Annotated[
        float | None, Help("a prompt that waited this long runs first, in turn; none: no guard")
    ] = None
    guard_every: Annotated[
        int, Help("with guard_ms: of how many prompts one is taken for its age")
    ] = 5
    shared_prefix_ms: Annotated[
        float | None,
        Help(
            "how long a prompt waits for another that computes the prefix of both; none: it does "
            "not"
        ),
    ] = None

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        for name in ("guard_ms", "shared_prefix_ms"):
            value = getattr(self, name)
            advice = f"{name} must be above 0, or none; try 1000"
            require(value is None or value > 0, advice, "prefill")
        require(self.guard_every >= 1, "guard_every must be at least 1; try 5", "prefill")


PREFILL_POLICIES: dict[str, PrefillEntry] = {
    "fifo": PrefillEntry("first come first served", lambda _: FifoPrefill()),
    "spf": PrefillEntry(
        "shortest prompt first",
        lambda _: ranked.RankedPrefill(ranked.prompt_length, preemptive=False),
    ),
    "sjf": PrefillEntry(
        "shortest predicted answer first",
        lambda _: ranked.RankedPrefill(ranked.predicted_answer, preemptive=False),
    ),
    "ltr": PrefillEntry(
        "lowest predicted score first, learning to rank",
        lambda _: ranked.RankedPrefill(ranked.predicted_rank, preemptive=False),
    ),
    "hrrn": PrefillEntry(
        "highest response ratio: short ones first, until others waited long",
        lambda _: ranked.RankedPrefill(ranked.response_ratio, preemptive=False),
    ),
    "edf": PrefillEntry(
        "earliest first token due first",
        lambda _: ranked.RankedPrefill(ranked.deadline, preemptive=True),
    ),
    "niyama": PrefillEntry(
        "due soon and short first; who cannot be in time gives way", NiyamaPrefill, NiyamaOptions
    ),
}

_NONE: Mapping[str, str] = MappingProxyType({})


def make_prefill_policy(name: str, options: Mapping[str, str] = _NONE) -> PrefillPolicy:
    """The policy of that name with these options, in the wrappers that they ask for.

    Raises ValueError listing the names on offer, or the options that this policy has.
    """
    if name not in PREFILL_POLICIES:
        names = sorted(PREFILL_POLICIES)
        raise ValueError(f"unknown prefill policy {name!r}; choose one of {names}")
    entry = PREFILL_POLICIES[name]
    known = option_fields(entry.options, CommonPrefillOptions)
    check_names(options, known, f"prefill policy {name!r}")
    common = parse_options(CommonPrefillOptions, options, "prefill")
    policy = entry.build(parse_options(entry.options, options, "prefill"))
    if common.guard_ms is not None:
        policy = WaitGuard(policy, max_wait_s=common.guard_ms / 1e3, every=common.guard_every)
    if common.shared_prefix_ms is not None:
        policy = SharedPrefixFirst(policy, max_wait_s=common.shared_prefix_ms / 1e3)
    return policy
