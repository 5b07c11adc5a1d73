"""`tandem plan`: the smallest deployment that keeps an SLA at a rate, and whether to disaggregate.

DistServe's search (OSDI 2024) with the production policies: capacity is the highest rate at which
the share of requests that keep both targets is still enough, found by bisection. Both kinds of
deployment get the same choice of chunk sizes and batch policies, the same requests and the same
number of nodes; the comparison is over several seeds.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from loadgen.traces import Trace
from scheduling.costs import StepShape, num_pairs
from simulator.performance.break_even import BreakEven, break_even
from simulator.performance.plan import Plan, Setup, Sizing
from simulator.performance.results import Result, interval
from simulator.performance.scenario import Layout, Scenario, simulate

RATE_STEPS = 6  # halvings of a bracket of a factor 2: a capacity is known to within 2 %
MAX_DOUBLINGS = 5
# Where a deployment that just keeps the SLA is past its capacity, so that setups differ.
PRESSURE = 1.25

# A run shorter than this many TTFT targets is a burst that queues absorb: with 60 requests a node
# seemed to serve twice what it can compute.
MIN_RUN_TTFTS = 20.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanQuestion:
    """What to plan for. `base` has profile, load, SLA and policies; its layout is of no account."""

    base: Scenario
    rate: float
    max_nodes: int
    batch_policies: tuple[str, ...]
    chunk_sizes: tuple[int, ...]
    num_seeds: int = 3

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        if not 0 < self.rate < 1e9:
            raise ValueError(f"a rate of {self.rate} requests/s: give one above 0")
        if self.max_nodes < 2 or self.num_seeds < 1:
            raise ValueError("--max-nodes must be at least 2 and --num-seeds at least 1")
        if not (self.batch_policies and self.chunk_sizes):
            raise ValueError("give at least one batch policy and one chunk size")

    @property
    def target(self) -> float:
        """Share of requests that must keep both targets."""
        return self.base.sla_table.classes[self.base.sla_class].attainment


@dataclass(slots=True)
class Search:
    """Simulates setups, each once per rate and seed, and remembers."""

    question: PlanQuestion
    say: Say
    _known: dict[tuple[Setup, float, int], Result] = field(default_factory=dict)

    def attainment(self, setup: Setup, rate: float, seed: int | None = None) -> float:
        """Share of requests that keep both targets."""
        base = self.question.base
        key = (setup, rate, base.seed if seed is None else seed)
        if key not in self._known:
            scenario = replace(
                base,
                layout=setup.layout,
                load=replace(base.load, rate=rate, num_requests=self._num_requests(rate)),
                seed=key[2],
                batch_policy=setup.batch_policy,
                max_num_batched_tokens=setup.chunk_tokens,
            )
            self._known[key] = simulate(scenario)
            share = self._known[key].attainment
            self.say(f"{setup}, {rate:.4g}/s, seed {key[2]}: {share:.1%} keep both targets")
        return self._known[key].attainment

    def _num_requests(self, rate: float) -> int:
        """As many as were asked for, more where the run would be over too soon."""
        base = self.question.base
        ttft_s = base.sla_table.resolve(None, None, None).ttft_ms / 1e3
        return max(base.load.num_requests, math.ceil(rate * ttft_s * MIN_RUN_TTFTS))

    def best(self, setup: Setup, rate: float, enough: float) -> Setup:
        """The best that is reached from `setup` by changing one thing at a time; `enough` will do.

        Attainment falls off on both sides of the best split, so its neighbours show the way.
        """
        found = setup
        while self.attainment(found, rate) < enough:
            better = max(self._neighbours(found), key=lambda s: self.attainment(s, rate))
            if self.attainment(better, rate) <= self.attainment(found, rate):
                return found
            found = better
        return found

    def _neighbours(self, setup: Setup) -> Iterator[Setup]:
        yield setup
        layout = setup.layout
        if not layout.num_mixed:
            for step in (-1, 1):
                num_prefill, num_decode = layout.num_prefill + step, layout.num_decode - step
                if min(num_prefill, num_decode) > 0:
                    other = Layout(num_prefill=num_prefill, num_decode=num_decode)
                    yield replace(setup, layout=other)
        for chunk in self.question.chunk_sizes:
            yield replace(setup, chunk_tokens=chunk)
        for name in self.question.batch_policies:
            yield replace(setup, batch_policy=name)

    def capacity(self, setup: Setup, guess: float, seed: int) -> float:
        """The highest rate that keeps the SLA; 0 where a 32nd of `guess` does not."""
        target = self.question.target
        low = guess
        for _ in range(MAX_DOUBLINGS):
            if self.attainment(setup, low, seed) >= target:
                break
            low /= 2
        else:
            return 0.0
        high = low * 2
        for _ in range(MAX_DOUBLINGS):
            if self.attainment(setup, high, seed) < target:
                break
            low, high = high, high * 2
        for _ in range(RATE_STEPS):
            middle = (low + high) / 2
            if self.attainment(setup, middle, seed) >= target:
                low = middle
            else:
                high = middle
        return low

    def curve(self, setup: Setup) -> list[tuple[float, float]]:
        """Rates that were tried at the first seed, with the attainment there."""
        seed = self.question.base.seed
        found = [(k[1], r.attainment) for k, r in self._known.items() if k[::2] == (setup, seed)]
        return sorted(found)


def make_plan(question: PlanQuestion, say: Say) -> Plan:
    """Search, compare, judge."""
    search = Search(question, say)
    starts = _Starts(question)
    say(f"the fewest nodes that keep {question.base.sla[0]} at {question.rate:.4g} requests/s")
    split = _fewest(search, question, starts.split, 2)
    mixed = _fewest(search, question, starts.mixed, 1)
    sizes = [s.layout.num_nodes for s in (split, mixed) if s is not None]
    num_nodes = max(2, min(sizes, default=question.max_nodes))
    say(f"disaggregated against colocated, {num_nodes} nodes each")
    compared = tuple(
        _measure(search, question, setup)
        for setup in (starts.split(num_nodes), starts.mixed(num_nodes))
    )
    base = question.base
    return Plan(
        profile=base.profile.name,
        trace=base.load.trace.name,
        rate=question.rate,
        sla=base.sla[0],
        max_nodes=question.max_nodes,
        split=split,
        mixed=mixed,
        compared=(compared[0], compared[1]),
        break_even=starts.break_even(compared[0].setup),
        curves=tuple((str(each.setup), search.curve(each.setup)) for each in compared),
    )


def _fewest(
    search: Search, question: PlanQuestion, start: Callable[[int], Setup], least: int
) -> Setup | None:
    """The smallest deployment that keeps the SLA at the rate; more nodes never keep it worse."""

    def best(num_nodes: int) -> Setup | None:
        found = search.best(start(num_nodes), question.rate, question.target)
        kept = search.attainment(found, question.rate) >= question.target
        return found if kept else None

    low, high, found = least - 1, least, None
    while (found := best(high)) is None:
        if high == question.max_nodes:
            return None
        low, high = high, min(question.max_nodes, high * 2)
    while high - low > 1:
        middle = (low + high) // 2
        smaller = best(middle)
        if smaller is None:
            low = middle
        else:
            high, found = middle, smaller
    return found


def _measure(search: Search, question: PlanQuestion, start: Setup) -> Sizing:
    """The best setup of as many nodes, under pressure, and its capacity at every seed."""
    setup = search.best(start, question.rate * PRESSURE, 1.0)
    seeds = range(question.base.seed, question.base.seed + question.num_seeds)
    capacities = []
    guess = question.rate
    for seed in seeds:
        capacities.append(search.capacity(setup, guess, seed))
        guess = capacities[-1] or question.rate
    return Sizing(setup, tuple(capacities), interval(capacities))


class _Starts:
    """Where searches start: the split by what an average request takes of each role."""

    def __init__(self, question: PlanQuestion) -> None:
        self._question = question
        self._profile = question.base.profile
        base = question.base
        trace: Trace = base.load.requests(base.seed)
        count = len(trace.requests)
        self._num_prompt = sum(r.num_prompt for r in trace.requests) / count
        self._num_output = sum(r.num_output for r in trace.requests) / count
        self._chunk = max(question.chunk_sizes)
        self._tpot_s = base.sla_table.resolve(None, None, None).tpot_ms / 1e3
        self._num_rows = self._most_rows()

    def split(self, num_nodes: int) -> Setup:
        """Disaggregated."""
        share = self._prefill_s() / (self._prefill_s() + self._decode_s())
        num_prefill = min(num_nodes - 1, max(1, round(share * num_nodes)))
        return self._setup(Layout(num_prefill=num_prefill, num_decode=num_nodes - num_prefill))

    def mixed(self, num_nodes: int) -> Setup:
        """Colocated."""
        return self._setup(Layout(num_mixed=num_nodes))

    def _setup(self, layout: Layout) -> Setup:
        return Setup(
            layout=layout, chunk_tokens=self._chunk, batch_policy=self._question.batch_policies[0]
        )

    def break_even(self, setup: Setup) -> BreakEven:
        """At the rows that a decode node has at the rate asked for, as far as it can."""
        num_rows = max(1, self._num_rows // 2)
        return break_even(
            self._profile,
            num_rows=num_rows,
            num_context=round(num_rows * self._mean_context),
            tpot_s=self._tpot_s,
            chunk_tokens=setup.chunk_tokens,
        )

    @property
    def _mean_context(self) -> float:
        return self._num_prompt + self._num_output / 2

    def _prefill_s(self) -> float:
        """Of one request, nothing cached."""
        num_tokens = round(self._num_prompt)
        num_steps = -(-num_tokens // self._chunk)
        shape = StepShape(num_tokens, num_pairs(num_tokens, 0))
        base_s = self._profile.step_s(StepShape(1, 0.5))
        prefix = num_tokens * (num_steps - 1) // 2
        return self._profile.step_s(shape, prefix) + (num_steps - 1) * base_s

    def _decode_s(self) -> float:
        """Of one request, its share of full batches."""
        num_rows = self._num_rows
        context = round(num_rows * self._mean_context)
        return (
            self._num_output * self._profile.step_s(StepShape(0, 0, num_rows, context)) / num_rows
        )

    def _most_rows(self) -> int:
        """Rows of average requests that fit and keep the time per token."""
        profile = self._profile
        num_pages = (self._num_prompt + self._num_output) / profile.page_size
        most = max(1, min(self._question.base.num_seqs, int(profile.num_pages / num_pages)))
        for num_rows in range(most, 1, -1):
            shape = StepShape(0, 0, num_rows, round(num_rows * self._mean_context))
            if profile.step_s(shape) <= self._tpot_s:
                return num_rows
        return 1
