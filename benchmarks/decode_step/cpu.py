"""Decode steps of a node on the CPU: time by stage, one thread and two, and what the host does.

Real steps through what the step loop calls: the core plans, the runner computes and draws, the core
accounts for it and ticks. Weights are random. Steps of one thread and of two alternate over the
same requests; of each the fastest step is shown, since others share the machine.
"""

import time
from typing import Any

import torch

from benchmarks.decode_step.requests import (
    MAX_TOKENS,
    PROMPT,
    HostTimes,
    acknowledge,
    decoding_core,
    host_times,
)
from benchmarks.decode_step.stages import MODEL, PAGE_SIZE, SAMPLE, TimedModel
from benchmarks.options import Options
from benchmarks.report import Report, Table, say
from engine.decoder import kv_layout
from engine.parts import FEW_ROWS
from engine.runner import TorchRunner
from loadgen.checkpoint import PRESETS, model_config
from node.core import NodeCore
from tandem.model_config import ModelDtype

MODELS = {
    "35M": model_config(PRESETS["35m"]),
    "300M": model_config(PRESETS["300m"]),
}
DTYPES: tuple[ModelDtype, ...] = ("float32", "bfloat16")
BATCHES = (1, 8, 32)
THREADS = (1, 2)
NUM_PAGES = max(BATCHES) * (PROMPT + MAX_TOKENS) // PAGE_SIZE + max(BATCHES)
NUM_STEPS, STEPS_S = 40, 2.5  # of each kind: so many, or as many as fit into that
HOST_ROWS = (32, 256)
PARTS = ("plan", "runner", "computed", "tick")


def run(options: Options) -> Report:
    """Every model, dtype and batch; then the host's part with more sequences."""
    torch.set_num_threads(1)
    measured = []
    for name, config in MODELS.items():
        if options.quick and name != "35M":
            continue
        for dtype in DTYPES:
            model = TimedModel(config, dtype, NUM_PAGES)
            calls_s = model.seconds_without_rows(5 if options.quick else 50)
            for num_rows in BATCHES:
                say(f"{name} {dtype}, {num_rows} rows")
                for step in _steps(model, num_rows, options):
                    measured.append(
                        {"model": name, "dtype": dtype, "rows": num_rows, **_figures(step, calls_s)}
                    )
    layout = kv_layout(MODELS["35M"], PAGE_SIZE, DTYPES[0])
    host = [host_times(layout, n, 20 if options.quick else 300) for n in HOST_ROWS]
    return Report(
        [_times_table(measured), _stage_table(measured), _host_table(host)],
        (
            "rest: all that is no operation of the model, and calling the operations, which is "
            "measured by a pass over no rows; with two threads it is of both, per step",
            "schedule: of steady steps, for which no policy is asked; in brackets where one is",
            "of every kind the fastest step; stages of two threads are sums over both, halved",
            f"up to {FEW_ROWS} rows threads share each product by columns, and nothing else",
        ),
        {"steps": measured, "host": [_host_figures(each) for each in host]},
    )


def _steps(model: TimedModel, num_rows: int, options: Options) -> list[dict[str, Any]]:
    """The fastest step of each number of threads: seconds by part and stage."""
    runners = {n: model.runner(n) for n in THREADS}
    layout, vocab_size = model.layout, model.config.vocab_size
    core = decoding_core(layout, NUM_PAGES, num_rows, vocab_size)
    best: dict[int, dict[str, Any]] = {}
    ends_at = time.monotonic() + (0.3 if options.quick else STEPS_S * len(THREADS))
    for n in range(NUM_STEPS):
        if n > 3 and time.monotonic() > ends_at:
            break
        for num_threads, runner in runners.items():
            model.clock.take()
            parts = _timed_step(core, runner)
            num_parts = 1 if num_rows <= FEW_ROWS else num_threads
            stages = {k: v / num_parts for k, v in model.clock.take().items()}
            step = {"threads": num_threads, **parts, "stages": stages}
            is_warm = n > 1 or options.quick
            if is_warm and (num_threads not in best or _total(step) < _total(best[num_threads])):
                best[num_threads] = step
    return list(best.values())


def _timed_step(core: NodeCore, runner: TorchRunner) -> dict[str, float]:
    marks = [time.perf_counter()]
    step = core.plan(time.monotonic())
    assert step is not None
    marks.append(time.perf_counter())
    result = runner.run(step.batch)
    marks.append(time.perf_counter())
    actions = core.computed(step, result, time.monotonic())
    marks.append(time.perf_counter())
    actions += core.tick(time.monotonic())
    marks.append(time.perf_counter())
    acknowledge(core, actions)
    return {part: marks[i + 1] - marks[i] for i, part in enumerate(PARTS)}


def _total(step: dict[str, Any]) -> float:
    return sum(float(step[part]) for part in PARTS)


def _figures(step: dict[str, Any], calls_s: float) -> dict[str, Any]:
    """Milliseconds; `rest` is what is not the model's own."""
    total = _total(step)
    stages: dict[str, float] = step["stages"]
    rest = total - sum(stages.get(stage, 0.0) for stage in MODEL) + calls_s
    return {
        "threads": step["threads"],
        "ms": round(total * 1e3, 3),
        "rest_ms": round(rest * 1e3, 3),
        "rest_share": round(rest / total, 4),
        **{f"{part}_ms": round(step[part] * 1e3, 3) for part in PARTS},
        "stages_ms": {stage: round(stages.get(stage, 0.0) * 1e3, 3) for stage in (*MODEL, SAMPLE)},
    }


def _times_table(measured: list[dict[str, Any]]) -> Table:
    rows = []
    for each in measured:
        single = next(m for m in measured if m["threads"] == 1 and _case(m) == _case(each))
        rows.append(
            [
                *_case(each),
                str(each["threads"]),
                f"{each['ms']:.2f}",
                f"{single['ms'] / each['ms']:.2f}",
                f"{1e3 * each['rows'] / each['ms']:.0f}",
                f"{each['rest_ms']:.2f}",
                f"{100 * each['rest_share']:.1f} %",
            ]
        )
    header = ("model", "dtype", "rows", "threads", "ms", "x one thread", "tok/s", "rest", "share")
    return Table(f"decode steps after prompts of {PROMPT} tokens", header, rows)


def _case(each: dict[str, Any]) -> tuple[str, str, str]:
    return each["model"], each["dtype"], str(each["rows"])


def _stage_table(measured: list[dict[str, Any]]) -> Table:
    stages = (*MODEL, SAMPLE)
    rows = [
        [
            *_case(each),
            str(each["threads"]),
            *(f"{each['stages_ms'][stage]:.2f}" for stage in stages),
            *(f"{each[f'{part}_ms']:.2f}" for part in PARTS if part != "runner"),
        ]
        for each in measured
    ]
    others = [part for part in PARTS if part != "runner"]
    return Table("ms by stage", ("model", "dtype", "rows", "threads", *stages, *others), rows)


def _host_table(host: list[HostTimes]) -> Table:
    rows = [[f"{value:g}" for value in _host_figures(each).values()] for each in host]
    header = ("sequences", "schedule", "(asked)", "rows", "batch", "computed", "tick", "in all")
    return Table(
        "us of processor time that the host's part of a decode step takes, medians", header, rows
    )


def _host_figures(each: HostTimes) -> dict[str, float]:
    parts = {
        "schedule_us": each.schedule_s,
        "rows_us": each.rows_s,
        "build_us": each.build_s,
        "computed_us": each.computed_s,
        "tick_us": each.tick_s,
    }
    figures = {name: round(s * 1e6, 1) for name, s in parts.items()}
    schedule_us = figures.pop("schedule_us")
    return {
        "sequences": each.num_rows,
        "schedule_us": schedule_us,
        "asked_us": round(each.asked_s * 1e6, 1),
        **figures,
        "sum_us": round(sum(parts.values()) * 1e6, 1),
    }
