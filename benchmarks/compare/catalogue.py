"""Comparisons by name."""

from collections.abc import Callable

from benchmarks.compare import (
    calibrate,
    http_door,
    overload,
    policies_real,
    policies_sim,
    sim_vs_real,
)
from benchmarks.options import Options
from benchmarks.report import Report

COMPARISONS: dict[str, Callable[[Options], Report]] = {
    "calibrate": calibrate.run,
    "http_door": http_door.run,
    "overload": overload.run,
    "overload_paced": overload.run_paced,
    "policies_real": policies_real.run,
    "policies_sim": policies_sim.run,
    "sim_vs_heavy": sim_vs_real.run_heavy,
    "sim_vs_mixed": sim_vs_real.run_mixed,
    "sim_vs_paced": sim_vs_real.run_paced,
    "sim_vs_real": sim_vs_real.run,
}
