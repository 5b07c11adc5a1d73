"""Decode steps of an 8B-shaped model beside their floor: as one graph, and launched one by one."""

from collections.abc import Iterator
from functools import partial

from benchmarks.gpu_all.attempts import one_by_one
from benchmarks.gpu_all.model import Model, Step
from benchmarks.gpu_all.paged import Paged, make_paged
from benchmarks.gpu_all.setting import Setting, Table
from benchmarks.gpu_all.timing import captured, seconds_per_call

# (rows, context): target ms
TARGETS_MS = {
    (1, 1024): 4.6, (1, 8192): 4.9, (32, 1024): 5.6, (32, 8192): 13.5,
    (128, 1024): 9.2, (96, 8192): 32.0, (256, 1024): 16.0, (256, 2048): 25.0,
}  # fmt: skip
SPARE = 512  # tokens that a timed sequence may grow by
HEADER = ("rows x context", "floor ms", "graph ms", "of floor", "target ms", "no graph ms", "tok/s")


def floor_s(setting: Setting, num_rows: int, context: int) -> float:
    """Weights and KV read once at the copy's rate; the products at the chip's, where longer."""
    shape, size = setting.shape, setting.dtype.itemsize
    weights_s = shape.weights * size / setting.copy_gb_s / 1e9
    products_s = 2 * shape.weights * num_rows / setting.matmul_tflop_s / 1e12
    kv_bytes = num_rows * context * shape.num_layers * shape.kv_row * size
    return max(weights_s, products_s) + kv_bytes / setting.copy_gb_s / 1e9


def run(setting: Setting) -> Iterator[Table]:
    """All sizes over one pool, largest last: what ran stands where memory ends."""
    sizes = setting.pick(list(TARGETS_MS), [(2, 40)])
    model = Model(setting, max(context for _, context in sizes) + SPARE)
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    yield from one_by_one(
        (f"{a} x {b}", partial(measure, setting, model, a, b)) for a, b in ordered
    )


def measure(setting: Setting, model: Model, num_rows: int, context: int) -> Table:
    """One size."""
    paged = make_full(setting, num_rows, context)
    graph_s, eager_s = step_seconds(setting, model, paged)
    floor = floor_s(setting, num_rows, context)
    target = TARGETS_MS.get((num_rows, context), 0.0)
    key = f"{num_rows} x {context}"
    cells = (
        f"{floor * 1e3:.2f}",
        f"{graph_s * 1e3:.2f}",
        f"{floor / graph_s:.0%}",
        f"{target:.1f}",
        f"{eager_s * 1e3:.2f}",
        f"{num_rows / graph_s:.0f}",
    )
    found = {"floor_ms": floor * 1e3, "graph_ms": graph_s * 1e3, "eager_ms": eager_s * 1e3}
    title = "Decode step of random weights, head, argmax and advance inside"
    return Table(title, HEADER, [(key, *cells)], {key: found})


def make_full(setting: Setting, num_rows: int, context: int) -> Paged:
    """Pages of all layers: half of the free memory is not enough for the largest."""
    return make_paged(setting, num_rows, context, setting.shape.num_layers, SPARE)


def step_seconds(setting: Setting, model: Model, paged: Paged) -> tuple[float, float]:
    """Seconds of a step as a graph, and of one whose kernels are launched one by one."""
    step = Step(model, paged)
    if setting.is_dry:
        seconds = seconds_per_call(setting, [step])
        return seconds, seconds
    eager_s = seconds_per_call(setting, [step], 0.1, as_graph=False)
    replay = captured([step])
    step.reset()
    return seconds_per_call(setting, [replay] * 4, 0.2, as_graph=False), eager_s
