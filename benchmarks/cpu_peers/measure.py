"""Round after round over the engines of a cell, so that a drift of the machine meets all alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.cpu_peers.catalogue import Cell, Site
from benchmarks.cpu_peers.engines import Engine
from benchmarks.cpu_peers.processes import PeerError
from benchmarks.cpu_peers.work import Scale, Work, draw_work
from benchmarks.cpu_peers.workers.channel import Answer, Request
from benchmarks.report import say

Start = Callable[[Cell, Site], Engine]


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one engine in one run. `exact_ids`: answers to compare with the baseline's, or none."""

    tokens_per_s: float
    tpot_ms: float
    ttft_ms: float
    memory_mb: float
    exact_ids: tuple[tuple[int, ...], ...] = ()


@dataclass(slots=True)
class Record:
    """Of one engine in one cell. `failure` says why there is no more."""

    version: str = ""
    runs: list[Figures] = field(default_factory=list)
    failure: str = ""

    def values(self, name: str) -> list[float]:
        """A figure of all runs."""
        return [float(getattr(each, name)) for each in self.runs]

    def median(self, name: str) -> float:
        """Of a figure over the runs."""
        return statistics.median(self.values(name))


def measure_cell(
    cell: Cell,
    site: Site,
    starts: Mapping[str, Start],
    scale: Scale,
    *,
    num_runs: int,
    once: Sequence[str],
    seed: int,
) -> dict[str, Record]:
    """Records by name. Engines of `once` are measured in the first run only."""
    records = {name: Record() for name in starts}
    resting: dict[str, Engine] = {}
    try:
        for run in range(num_runs):
            work = draw_work(scale, cell.shape.vocab_size, seed, run)
            for name in _turned(list(starts), run):
                record = records[name]
                if record.failure or (run and name in once):
                    continue
                try:
                    _turn(name, cell, site, starts[name], resting, work, record)
                except PeerError as error:
                    record.failure = str(error)
                    say(f"{cell} {name}: {error}")
    finally:
        for engine in resting.values():
            engine.close()
    return records


def _turn(
    name: str,
    cell: Cell,
    site: Site,
    start: Start,
    resting: dict[str, Engine],
    work: Work,
    record: Record,
) -> None:
    """One run of one engine: woken or started, measured, put to rest or ended."""
    began = time.monotonic()
    engine = resting.pop(name, None)
    if engine is None:
        engine = start(cell, site)
    is_kept = False
    try:
        engine.wake()
        ready_s = time.monotonic() - began
        is_first = not record.runs
        figures = _measure(engine, work, is_compared=is_first and cell.dtype == "float32")
        record.version = engine.version
        record.runs.append(figures)
        is_kept = engine.rest()
    finally:
        if is_kept:
            resting[name] = engine
        else:
            engine.close()
    say(
        f"{cell} run {len(record.runs)} {name}: {figures.tokens_per_s:.0f} tokens/s, TPOT "
        f"{figures.tpot_ms:.1f} ms, TTFT {figures.ttft_ms:.0f} ms; ready after {ready_s:.0f} s, "
        f"{time.monotonic() - began:.0f} s in all"
    )


def _measure(engine: Engine, work: Work, *, is_compared: bool) -> Figures:
    _ask(engine, work.warm_up)
    _ask(engine, [Request(work.long[0].prompt_ids[::-1], 2)])
    answers = _ask(engine, work.batch)
    memory_mb = engine.memory_mb()
    (single,) = _ask(engine, work.single)
    (long,) = _ask(engine, work.long)
    exact = _ask(engine, work.exact) if is_compared else []
    num_gaps = work.single[0].num_tokens - 1
    return Figures(
        tokens_per_s=work.num_output_tokens / max(each.last_s for each in answers),
        tpot_ms=(single.last_s - single.first_s) / num_gaps * 1e3,
        ttft_ms=long.first_s * 1e3,
        memory_mb=memory_mb,
        exact_ids=tuple(tuple(each.token_ids) for each in exact),
    )


def _ask(engine: Engine, requests: list[Request]) -> list[Answer]:
    """Raises PeerError where an answer has not as many tokens as were asked for."""
    answers = engine.answer(requests)
    for request, answer in zip(requests, answers, strict=True):
        if len(answer.token_ids) != request.num_tokens:
            raise PeerError(f"{len(answer.token_ids)} tokens came, {request.num_tokens} were asked")
    return answers


def _turned(names: list[str], run: int) -> list[str]:
    """Who begins changes from run to run."""
    place = run * max(1, len(names) // 3) % len(names)
    return names[place:] + names[:place]
