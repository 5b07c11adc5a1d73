"""Placement policies by name, with typed options. Pure.

To add one: a scorer per pool in `scheduling.routing.scorers`, and an entry below.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal

from scheduling.batch.options import (
    NoOptions,
    check_names,
    option_fields,
    parse_options,
    require,
)
from scheduling.routing import scorers
from scheduling.routing.local import LocalPrefill
from scheduling.routing.pipeline import Pipeline
from scheduling.routing.placement import PlacementPolicy, QueueLimits
from scheduling.routing.scorers import Scorer
from tandem.config import DataclassLike, Help

ROLE = "placement"
DEFAULT_POLICY = "lmetric"


@dataclass(frozen=True, slots=True)
class CommonOptions:
    """What any policy has."""

    local_prefill: Annotated[
        Literal["never", "by_cost"],
        Help("by_cost: a prompt is computed on its decode node where measured costs say so"),
    ] = "never"
    local_share: Annotated[
        float, Help("share of the remote time that a local prefill may take at most")
    ] = 0.8

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        require(self.local_share > 0, "local_share must be above 0; try 0.8", ROLE)


@dataclass(frozen=True, slots=True)
class PrefixOptions:
    """Of `prefix`."""

    min_match: Annotated[float, Help("share of the prompt below which a match counts nothing")] = (
        0.5
    )
    imbalance_tokens: Annotated[
        int, Help("out of balance: the longest queue is longer than the shortest by this many")
    ] = 8192
    imbalance_ratio: Annotated[
        float, Help("and is more than this many times as long; then the shortest queue wins")
    ] = 1.5


@dataclass(frozen=True, slots=True)
class DynamoOptions:
    """Of `dynamo`."""

    overlap_weight: Annotated[float, Help("what a block to prefill counts against one in use")] = (
        1.0
    )


@dataclass(frozen=True, slots=True)
class PackOptions:
    """Of `pack`."""

    fullest: Annotated[float, Help("share of a node that is filled before the next one")] = 0.9

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        require(0 < self.fullest <= 1, "fullest must be within (0, 1]; try 0.9", ROLE)


@dataclass(frozen=True, slots=True)
class WeightedOptions:
    """Of `weighted`: what each score counts."""

    prefix: Annotated[float, Help("weight of the prompt's share that is not cached")] = 2.0
    queue: Annotated[float, Help("weight of prompt tokens that wait (prefill)")] = 1.0
    pages: Annotated[float, Help("weight of pages in use (decode)")] = 1.0
    sequences: Annotated[float, Help("weight of requests that decode (decode)")] = 1.0


Scorers = tuple[Scorer, Scorer]  # of the prefill pool, of the decode pool


@dataclass(frozen=True, slots=True)
class PlacementEntry:
    """A policy on offer: its scorers from its options."""

    summary: str
    build: Callable[[Any], Scorers]
    options: type[DataclassLike] = NoOptions


def _dynamo(options: DynamoOptions) -> Scorers:
    weight = options.overlap_weight
    return scorers.DynamoPrefill(weight), scorers.DynamoDecode(weight)


def _prefix(options: PrefixOptions) -> Scorers:
    affinity = scorers.PrefixAffinity(
        options.min_match, options.imbalance_tokens, options.imbalance_ratio
    )
    return affinity, scorers.decode_occupancy


def _weighted(options: WeightedOptions) -> Scorers:
    prefix = (options.prefix, scorers.missing_prefix)
    prefill = scorers.Weighted((prefix, (options.queue, scorers.queued_tokens)))
    pages = (options.pages, scorers.pages_used)
    decode = scorers.Weighted((prefix, pages, (options.sequences, scorers.sequences)))
    return prefill, decode


PLACEMENT_POLICIES: dict[str, PlacementEntry] = {
    "lmetric": PlacementEntry(
        "new prefill tokens times batch size (LMetric); for decode, fullness times batch size",
        lambda _: (scorers.lmetric_prefill, scorers.lmetric_decode),
    ),
    "least_loaded": PlacementEntry(
        "fewest tokens to compute; for decode, the emptiest",
        lambda _: (scorers.prefill_backlog, scorers.decode_occupancy),
    ),
    "round_robin": PlacementEntry("in turn", lambda _: (scorers.turns, scorers.turns)),
    "prefix": PlacementEntry(
        "longest cached prefix while queues are in balance (SGLang)", _prefix, PrefixOptions
    ),
    "mooncake": PlacementEntry(
        "least predicted time to first token; for decode, time per token (Mooncake)",
        lambda _: (scorers.first_token_s, scorers.token_s),
    ),
    "dynamo": PlacementEntry(
        "blocks to prefill plus blocks in use (Dynamo's KV router)", _dynamo, DynamoOptions
    ),
    "pack": PlacementEntry(
        "for decode, the fullest node that keeps the time per token (PolyServe)",
        lambda options: (scorers.lmetric_prefill, scorers.Packed(options.fullest)),
        PackOptions,
    ),
    "weighted": PlacementEntry(
        "weighted sum of scores, each between 0 and 1 over the pool (llm-d)",
        _weighted,
        WeightedOptions,
    ),
}

_NONE: Mapping[str, str] = MappingProxyType({})


def make_policy(
    name: str, limits: QueueLimits, options: Mapping[str, str] = _NONE
) -> PlacementPolicy:
    """The policy of that name with these options.

    Raises ValueError listing the names on offer, or the options that this policy has.
    """
    if name not in PLACEMENT_POLICIES:
        names = ", ".join(sorted(PLACEMENT_POLICIES))
        raise ValueError(f"no placement policy {name!r}: use one of {names}")
    entry = PLACEMENT_POLICIES[name]
    known = option_fields(entry.options, CommonOptions)
    check_names(options, known, f"placement policy {name!r}")
    common = parse_options(CommonOptions, options, ROLE)
    prefill_scorer, decode_scorer = entry.build(parse_options(entry.options, options, ROLE))
    local = LocalPrefill(common.local_share) if common.local_prefill == "by_cost" else None
    return Pipeline(limits, prefill_scorer, decode_scorer, local)
