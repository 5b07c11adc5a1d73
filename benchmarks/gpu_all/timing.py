"""Times of calls on the device, without what the host needs to begin them."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.gpu_all.setting import Setting

L2_BYTES = 60 << 20  # an H200's; copies rotate over more than that
Call = Callable[[], object]


def num_copies(num_bytes: int, most: int = 64) -> int:
    """Copies of data of this size that together do not fit the last cache."""
    return max(1, min(most, -(-2 * L2_BYTES // max(1, num_bytes))))


def seconds_per_call(
    setting: Setting, calls: Sequence[Call], budget_s: float = 0.15, *, as_graph: bool = True
) -> float:
    """Seconds of one call, of `calls` in rotation: the median of several rounds.

    as_graph: all of them as one CUDA graph, so that launches cost what they cost in a graph.
    """
    if setting.is_dry:
        begin = time.perf_counter()
        for call in calls[:2]:
            call()
        return (time.perf_counter() - begin) / len(calls[:2])
    replay = captured(calls) if as_graph else _one_by_one(calls)
    first_s = _timed(replay)
    rounds = max(3, min(50, int(budget_s / max(first_s, 1e-6))))
    return statistics.median(_timed(replay) for _ in range(rounds)) / len(calls)


def captured(calls: Sequence[Call]) -> Call:
    """The calls as one CUDA graph; each has been made once before (compiles, workspaces)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    replay: Call = graph.replay
    replay()
    return replay


def _one_by_one(calls: Sequence[Call]) -> Call:
    def run() -> None:
        for call in calls:
            call()

    run()
    return run


def _timed(call: Call) -> float:
    """Seconds on the device between events around the call."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
