"""A hardware profile of this machine for the simulator, learned from the real system at work.

Nodes fit the costs of their steps and transfers while they work (`NodeLoad.costs`). Two things are
not in them: the time between steps, in which a node handles messages and plans, and what a message
takes between processes. The first is wall time over steps of a full node less its mean step, the
second what the first token of a lone request takes beyond its prefill.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from benchmarks.claims.systems import VOCAB_SIZE, Deployment, node_loads
from benchmarks.compare.real import as_workload, mix
from benchmarks.options import Options
from benchmarks.report import say
from benchmarks.traces import Lengths
from loadgen.measure import Measurement, run_workload
from scheduling.costs import prefill_s
from simulator.performance.profiles import Profile, Regime
from tandem.async_client import AsyncClient
from tandem.messages.common import NodeCosts
from tandem.messages.membership import NodeLoad

# Of the demo model: 4 layers, K and V, 2 heads of 64, float32.
KV_BYTES_PER_TOKEN = 4 * 2 * 2 * 64 * 4
NUM_PAGES = 4096
MAX_NUM_SEQS = 64
MAX_NUM_BATCHED_TOKENS = 512
NODE_ARGS = (
    *("--num-pages", str(NUM_PAGES), "--max-num-seqs", str(MAX_NUM_SEQS)),
    *("--max-num-batched-tokens", str(MAX_NUM_BATCHED_TOKENS)),
)
# Real processes, sockets and pages, and a device that sleeps as long as these costs say: what other
# processes do to the cores leaves its steps alone.
PACED_FLAGS = ("--device", "fake", "--fake-costs", "0.004:0.0005:0:0.0005:0")
# In the simulator: two to be placed, one to the node, two for the grant of pages.
NUM_MESSAGES = 5
LOADS = (1, 4, 16, 48)
# A transfer ends with the word of its owner, whose steps are long under load. The simulator has
# requests wait for those by themselves: with 48 in flight transfers seemed to take 57 ms.
TRANSFERS_AT = 4
# Few rows are bound by reading weights, many by computing: with one line through all, steps of 1 to
# 5 rows were 15 % too long. Up to so many rows count what was learned with 4 in flight.
FEW_ROWS = 8
# Median of |log error| of a lognormal over its sigma.
MEDIAN_TO_SIGMA = 0.6745


@dataclass(frozen=True, slots=True)
class Calibration:
    """A profile, and what it rests on."""

    profile: Profile
    prefill: NodeCosts
    decode: NodeCosts
    few: NodeCosts  # of decode steps with few rows
    gap_s: float  # between two steps


async def calibrate(
    deployment: Deployment,
    options: Options,
    seed: int,
    *,
    kv_bytes_per_token: int = KV_BYTES_PER_TOKEN,
) -> Calibration:
    """Closed loops of 1, 4, 16 and 48 requests; raises ValueError where nodes told no costs.

    Without a prefill node the decode node's costs are those of both roles.
    """
    async with deployment.client() as client:
        await client.wait_until_ready(30.0)
        num_requests = 40 if options.quick else 160
        gaps_s: dict[int, float] = {}
        light: NodeCosts | None = None
        few: NodeCosts | None = None
        for number, in_flight in enumerate(LOADS):
            say(f"calibrating with {in_flight} in flight")
            count = max(24, num_requests * in_flight // max(LOADS))
            before = await node_loads(deployment)
            measured = await _loop(client, mix(options, count, seed + number), in_flight)
            after = await node_loads(deployment)
            if in_flight == TRANSFERS_AT:
                light, few = _of_prefills(after).costs, after["decode-0"].costs
            gaps_s[in_flight] = _gap_s(before["decode-0"], after["decode-0"], measured)
        lone = await _loop(client, mix(options, 12, seed + len(LOADS)), 1)
        loads = await node_loads(deployment)
    prefill, decode = _of_prefills(loads).costs, loads["decode-0"].costs
    if prefill is None or decode is None or light is None or few is None:
        raise ValueError("the nodes learned no costs: give them more work (without --quick)")
    gap_s, few_gap_s = gaps_s[max(LOADS)], gaps_s[TRANSFERS_AT]
    control_s = _control_s(lone, mix(options, 12, seed + len(LOADS)), prefill)
    profile = msgspec.structs.replace(
        _profile(prefill, decode, few, gap_s, few_gap_s, control_s),
        transfer_s=light.transfer_s,
        transfer_bytes_per_s=light.transfer_bytes_per_s,
        kv_bytes_per_token=kv_bytes_per_token,
    )
    return Calibration(profile, prefill, decode, few, gap_s)


def _of_prefills(loads: Mapping[str, NodeLoad]) -> NodeLoad:
    return loads.get("prefill-0", loads["decode-0"])


async def _loop(client: AsyncClient, lengths: list[Lengths], in_flight: int) -> Measurement:
    workload = as_workload(lengths)
    return await run_workload(
        client, workload, vocab_size=VOCAB_SIZE, max_in_flight=in_flight, seed=len(lengths)
    )


def _gap_s(before: NodeLoad, after: NodeLoad, measured: Measurement) -> float:
    """Between steps of a node that always had one to do; 0 where steps are not told apart."""
    num_steps = max(1, after.num_steps - before.num_steps)
    busy_s = after.busy_s - before.busy_s
    return max(0.0, (measured.duration_s - busy_s) / num_steps) if busy_s else 0.0


def _control_s(lone: Measurement, lengths: list[Lengths], costs: NodeCosts) -> float:
    ttft_s = statistics.median(sample.ttft_s for sample in lone.samples)
    num_prompt = round(statistics.median(each.num_prompt for each in lengths))
    work_s = prefill_s(costs, num_prompt, 0, MAX_NUM_BATCHED_TOKENS)
    return max(0.0, (ttft_s - work_s) / NUM_MESSAGES)


def _regime(
    prefill: NodeCosts, decode: NodeCosts, gap_s: float, max_decode_rows: int | None
) -> Regime:
    return Regime(
        prefill_base_s=prefill.step_s + gap_s,
        prefill_token_s=prefill.prefill_token_s,
        prefill_context_s=prefill.prefill_context_s,
        decode_base_s=decode.step_s + gap_s,
        decode_row_s=decode.decode_row_s,
        decode_context_s=decode.decode_context_s,
        max_decode_rows=max_decode_rows,
    )


def _profile(
    prefill: NodeCosts,
    decode: NodeCosts,
    few: NodeCosts,
    gap_s: float,
    few_gap_s: float,
    control_s: float,
) -> Profile:
    few_rows = _regime(prefill, few, min(gap_s, few_gap_s), FEW_ROWS)
    regimes = (few_rows, _regime(prefill, decode, gap_s, None))
    return Profile(
        name="cpu-demo",
        source="this machine: what its nodes learned of themselves under load",
        num_pages=NUM_PAGES,
        kv_bytes_per_token=KV_BYTES_PER_TOKEN,
        regimes=regimes,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        transfer_bytes_per_s=prefill.transfer_bytes_per_s,
        transfer_s=prefill.transfer_s,
        control_s=control_s,
        noise_sigma=min(0.5, max(prefill.error, decode.error) / MEDIAN_TO_SIGMA),
    )


def as_toml(profile: Profile) -> str:
    """The profile as a file of `simulator/performance/hardware`."""
    values = {
        name: getattr(profile, name) for name in profile.__struct_fields__ if name != "regimes"
    }
    lines = [f"{name} = {_toml_value(value)}" for name, value in values.items()]
    for regime in profile.regimes:
        lines += ["", "[[regimes]]"]
        for name in regime.__struct_fields__:
            value = getattr(regime, name)
            if value is not None:
                lines.append(f"{name} = {_toml_value(value)}")
    return "\n".join(lines) + "\n"


def _toml_value(value: str | float) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value) if isinstance(value, int) else f"{value:.6g}"
