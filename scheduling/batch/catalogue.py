"""Batch policies by name, with typed options. Pure.

To add one: a module with its options (a frozen dataclass of fields with `Help`) and its class, and
an entry below. tests/scheduling/conformance then holds it to what every policy must keep, and to
what its entry declares.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Annotated, Any

from scheduling.batch.andes import AndesOptions, AndesPolicy
from scheduling.batch.buckets import DEFAULT_WINDOW_S, BucketOptions, BucketPolicy
from scheduling.batch.fair import FairShares
from scheduling.batch.fifo import FifoPolicy, OrcaPolicy
from scheduling.batch.guard import GuardLimits, StarvationGuard
from scheduling.batch.magnus import MagnusOptions, MagnusPolicy
from scheduling.batch.magnus_continuous import MagnusContinuousOptions, MagnusContinuousPolicy
from scheduling.batch.mlfq import MlfqOptions, MlfqPolicy
from scheduling.batch.niyama import NiyamaOptions, NiyamaPolicy
from scheduling.batch.options import (
    NoOptions,
    check_names,
    option_fields,
    parse_options,
    require,
)
from scheduling.batch.preemptive import (
    SrptOptions,
    ltr_policy,
    priority_policy,
    srpt_policy,
)
from scheduling.batch.ranked import (
    RankedPolicy,
    highest_response_ratio,
    shortest_answer,
    shortest_prompt,
)
from scheduling.batch.sarathi import SarathiOptions, SarathiPolicy
from scheduling.batch.slai import SlaiOptions, SlaiPolicy
from scheduling.batch.static import DEFAULT_MAX_WAIT_S, StaticOptions, StaticPolicy
from scheduling.batch.wait import DEFAULT_MAX_WAIT_S as WAIT_MAX_WAIT_S
from scheduling.batch.wait import WaitOptions, WaitPolicy
from scheduling.views import BatchPolicy
from tandem.config import DataclassLike, Help


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """A policy on offer: how to build it from its options, and what it promises.

    work_conserving: with anything to compute, no step is empty. non_preemptive: preempts where
    pages run out, never for the sake of its order. max_wait_s: how long it lets an idle node wait
    for company at most, with default options. orders_by_prediction: mean latency gains from good
    predictions of length. is_steady: without prompts, waiting or swapped requests, and with
    pages for all that run, it decodes these, oldest first, at any time and whatever came before, so
    a node need not ask.
    """

    summary: str
    build: Callable[[Any], BatchPolicy]
    options: type[DataclassLike] = NoOptions
    work_conserving: bool = True
    non_preemptive: bool = True
    max_wait_s: float = 0.0
    orders_by_prediction: bool = False
    is_steady: bool = False


@dataclass(frozen=True, slots=True)
class CommonOptions:
    """What goes around any policy."""

    guard_ms: Annotated[
        float | None, Help("boost what waited this long in all; none: no starvation guard")
    ] = None
    guard_steps: Annotated[
        int | None, Help("boost what was passed over by this many steps; none: not by steps")
    ] = None
    guard_factor: Annotated[
        float, Help("with guard_ms: nor before it waited this many times its predicted service")
    ] = 2.0
    guard_share: Annotated[float, Help("share of rows and tokens that boosted ones may take")] = 0.2
    fair: Annotated[bool, Help("serve the tenant first that got least (VTC)")] = False

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        require(self.guard_ms is None or self.guard_ms > 0, "guard_ms must be above 0; try 3000")
        require(
            self.guard_steps is None or self.guard_steps > 0,
            "guard_steps must be above 0; try 200",
        )
        require(self.guard_factor >= 0, "guard_factor must not be negative; try 2")
        require(0 < self.guard_share <= 1, "guard_share must be within (0, 1]; try 0.2")


BATCH_POLICIES: dict[str, PolicyEntry] = {
    "fifo": PolicyEntry(
        "continuous batching, first come first served", lambda _: FifoPolicy(), is_steady=True
    ),
    "orca": PolicyEntry(
        "admits where the full length fits, computes prompts whole",
        lambda _: OrcaPolicy(),
        is_steady=True,
    ),
    "static": PolicyEntry(
        "a batch runs until its longest request ends; ended rows are computed on",
        lambda options: StaticPolicy(options, keep_finished_rows=True),
        StaticOptions,
        work_conserving=False,
        max_wait_s=DEFAULT_MAX_WAIT_S,
    ),
    "static-dropping": PolicyEntry(
        "static batching whose ended rows are left out",
        lambda options: StaticPolicy(options, keep_finished_rows=False),
        StaticOptions,
        work_conserving=False,
        max_wait_s=DEFAULT_MAX_WAIT_S,
    ),
    "sarathi": PolicyEntry(
        "chunked prefill under a token budget, decodes first",
        SarathiPolicy,
        SarathiOptions,
        is_steady=True,
    ),
    "priority": PolicyEntry(
        "higher priority takes rows and pages from lower",
        lambda _: priority_policy(),
        non_preemptive=False,
        is_steady=True,
    ),
    "spf": PolicyEntry(
        "shortest prompt first", lambda _: RankedPolicy(shortest_prompt), is_steady=True
    ),
    "sjf": PolicyEntry(
        "shortest predicted answer first",
        lambda _: RankedPolicy(shortest_answer),
        orders_by_prediction=True,
        is_steady=True,
    ),
    "srpt": PolicyEntry(
        "shortest remaining answer first, may stop others",
        srpt_policy,
        SrptOptions,
        non_preemptive=False,
        orders_by_prediction=True,
    ),
    "hrrn": PolicyEntry(
        "highest response ratio next: short ones first, yet nobody waits for ever",
        lambda _: RankedPolicy(highest_response_ratio),
        is_steady=True,
    ),
    "ltr": PolicyEntry(
        "by a learned score, may stop others",
        lambda _: ltr_policy(),
        non_preemptive=False,
        orders_by_prediction=True,
    ),
    "slai": PolicyEntry(
        "rows run at their last schedulable time, prompts until then", SlaiPolicy, SlaiOptions
    ),
    "niyama": PolicyEntry(
        "chunks as large as the slack of tokens allows, prompts by deadline and length",
        NiyamaPolicy,
        NiyamaOptions,
    ),
    "buckets": PolicyEntry(
        "static batches of answers alike in length, formed within a time window",
        BucketPolicy,
        BucketOptions,
        work_conserving=False,
        max_wait_s=DEFAULT_WINDOW_S,
    ),
    "magnus": PolicyEntry(
        "static batches that waste little by prediction, the highest response ratio next",
        MagnusPolicy,
        MagnusOptions,
    ),
    "magnus-cb": PolicyEntry(
        "continuous batching by response ratio, within predicted memory",
        MagnusContinuousPolicy,
        MagnusContinuousOptions,
    ),
    "mlfq": PolicyEntry(
        "who had least service first, without predictions (FastServe)",
        MlfqPolicy,
        MlfqOptions,
        non_preemptive=False,
    ),
    "wait": PolicyEntry(
        "the same few of each predicted length enter in each step, which waits for them",
        lambda options: WaitPolicy(options, nested=False),
        WaitOptions,
        work_conserving=False,
        max_wait_s=WAIT_MAX_WAIT_S,
    ),
    "wait-nested": PolicyEntry(
        "wait, by how far answers have come instead of predictions",
        lambda options: WaitPolicy(options, nested=True),
        WaitOptions,
        work_conserving=False,
        max_wait_s=WAIT_MAX_WAIT_S,
    ),
    "andes": PolicyEntry(
        "rows for those whose readers run out of text first, others are held",
        AndesPolicy,
        AndesOptions,
        non_preemptive=False,
    ),
}

_NONE: Mapping[str, str] = MappingProxyType({})


def is_steady_policy(name: str, options: Mapping[str, str] = _NONE) -> bool:
    """Whether `make_batch_policy` gives a steady one; a wrapper may count steps."""
    wrapping = {field.name for field in fields(CommonOptions)}
    return BATCH_POLICIES[name].is_steady and not wrapping & options.keys()


def make_batch_policy(name: str, options: Mapping[str, str] = _NONE) -> BatchPolicy:
    """The policy of that name with these options, in the wrappers that they ask for.

    Raises ValueError listing the names on offer, or the options that this policy has.
    """
    if name not in BATCH_POLICIES:
        raise ValueError(f"unknown batch policy {name!r}; choose one of {sorted(BATCH_POLICIES)}")
    entry = BATCH_POLICIES[name]
    known = option_fields(entry.options, CommonOptions)
    check_names(options, known, f"batch policy {name!r}")
    common = parse_options(CommonOptions, options)
    policy = entry.build(parse_options(entry.options, options))
    if common.fair:
        policy = FairShares(policy)
    if common.guard_ms is None and common.guard_steps is None:
        return policy
    max_wait_s = None if common.guard_ms is None else common.guard_ms / 1e3
    limits = GuardLimits(
        max_wait_s, common.guard_steps, factor=common.guard_factor, share=common.guard_share
    )
    return StarvationGuard(policy, limits)
