"""Decode steps of the engine itself: its decoder, resident rows and graphs, with random weights.

The difference to the part `step` is what the engine adds; "host ms" is from one result to the next,
as a node sees it, so that it less the graph is what the host leaves visible of itself.
"""

from collections.abc import Iterator
from functools import partial

from benchmarks.decode_probe import ROOM, DecodeProbe
from benchmarks.gpu_all.attempts import one_by_one
from benchmarks.gpu_all.setting import Setting, Table
from benchmarks.gpu_all.step import floor_s
from loadgen.checkpoint import Shape, model_config

SIZES = [(1, 1024), (1, 8192), (32, 1024), (32, 8192), (128, 1024), (256, 1024)]
HEADER = ("rows x context", "floor ms", "graph ms", "of floor", "host ms", "no graph, host ms")


def run(setting: Setting) -> Iterator[Table]:
    """Greedy steps, captured and not."""
    shape, sizes = setting.shape, setting.pick(SIZES, [(2, 40)])
    model = Shape(
        hidden_size=shape.hidden,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocab,
    )
    pages = [rows * (-(-(context + ROOM) // setting.page_size) + 1) for rows, context in sizes]
    probe = DecodeProbe(
        model_config(model),
        num_pages=max(pages),
        max_context=max(context for _, context in sizes),
        device=setting.device.type,
        dtype=setting.pick("bfloat16", "float32"),
        page_size=setting.page_size,
    )
    yield from one_by_one((f"{a} x {b}", partial(measure, setting, probe, a, b)) for a, b in sizes)


def measure(setting: Setting, probe: DecodeProbe, num_rows: int, context: int) -> Table:
    """One size."""
    graph = probe.decode_step_times(num_rows, context, with_graphs=True)
    plain = probe.decode_step_times(num_rows, context, with_graphs=False)
    floor = floor_s(setting, num_rows, context)
    times = (graph.device_s, graph.host_s, plain.host_s)
    graph_ms, host_ms, plain_ms = (1e3 * seconds for seconds in times)
    cells = (f"{floor * 1e3:.2f}", f"{graph_ms:.2f}", f"{floor * 1e3 / graph_ms:.0%}")
    key = f"{num_rows} x {context}"
    found = {"graph_ms": graph_ms, "host_ms": host_ms, "plain_host_ms": plain_ms}
    row = (key, *cells, f"{host_ms:.2f}", f"{plain_ms:.2f}")
    return Table("Decode step of the engine", HEADER, [row], {key: found})
