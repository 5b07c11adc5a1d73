"""PNG files of a plan, with matplotlib, which is an extra: without it there are none.

It is loaded by name when the first plot is drawn, so that nothing else needs it.
"""

import importlib
import importlib.util
from pathlib import Path

from simulator.performance.plan import Plan

WIDTH, HEIGHT = 7.0, 4.2


def explain_missing_plots() -> str | None:
    """What to do where plots cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is not None:
        return None
    return "no plots: matplotlib is not installed; pip install 'tandem-serve[plan]'"


def draw_plots(folder: Path, plan: Plan) -> list[Path]:
    """Attainment by rate, and goodput per node; the files that were written."""
    importlib.import_module("matplotlib").use("Agg")  # files only, no display
    pyplot = importlib.import_module("matplotlib.pyplot")
    folder.mkdir(parents=True, exist_ok=True)
    target = float(plan.sla.rsplit(":", 1)[1])
    figure, axes = pyplot.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
    for name, points in plan.curves:
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
    axes.axhline(target, color="grey", linestyle="--", label="asked for")
    axes.axvline(plan.rate, color="grey", linestyle=":")
    axes.set(xlabel="requests/s", ylabel="share that keeps both targets", ylim=(0, 1.02))
    axes.set_title(f"{plan.profile}, {plan.trace}")
    axes.legend()
    attainment = folder / "attainment.png"
    figure.savefig(attainment, dpi=120)
    pyplot.close(figure)
    figure, axes = pyplot.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
    for number, sizing in enumerate(plan.compared):
        num_nodes = sizing.setup.layout.num_nodes
        spread = [c / num_nodes for c in sizing.capacities]
        axes.bar(number, sizing.per_node, color="lightgrey")
        axes.plot([number] * len(spread), spread, marker="o", linestyle="none")
    axes.set_xticks(range(len(plan.compared)), [str(s.setup) for s in plan.compared])
    axes.set(ylabel="requests/s per node within the SLA", title=f"SLA {plan.sla}; a dot per seed")
    goodput = folder / "goodput.png"
    figure.savefig(goodput, dpi=120)
    pyplot.close(figure)
    return [attainment, goodput]
