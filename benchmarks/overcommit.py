"""How many requests share a pool of pages, by what each is promised; see decision 0015.

    python -m benchmarks.overcommit --traces /path/to/traces

A decode node's production core computes its own prompts with a runner that answers by length only;
the queue is kept full, and all numbers are counted in steps: nothing is timed. Predictions are the
median and 0.9 quantile of the trace's answers, the same for everybody.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, quantiles

from benchmarks.traces import Lengths, describe_source, sample_lengths
from decode_node.guest import DecodeGuest
from decode_node.preemption import Preemption, PreemptionOptions
from kv_transfer.incoming import IncomingTransfers
from kv_transfer.outgoing import OutgoingTransfers
from node.core import Admitted, FromPeer, Limits, NodeCore, Step
from node.emitter import Emitter
from node.growth import Overcommit, ReserveMode
from node.ledger import PageLedger
from node.resident import Resident
from node.runner import Sampled, StepResult
from node.state import NodeIdentity, NodeState
from prefill_node.role import SharedPrefill
from scheduling.batch.catalogue import make_batch_policy
from scheduling.costs import UNKNOWN_COSTS
from scheduling.prefill.fifo import FifoPrefill
from scheduling.views import Services
from tandem.frames import TokenIds
from tandem.layout import KVLayout
from tandem.messages.common import LengthPrediction, ModelIdentity, SlaTargets
from tandem.messages.membership import RoleWeights
from tandem.messages.serving import Decode, EmissionAck, RequestSpec
from tandem.sampling import SamplingParams

EOS = 1
GATEWAY = b"gateway/g/1"
LAYOUT = KVLayout(num_layers=1, num_kv_heads=1, head_dim=1, page_size=16, dtype="float32")
TARGETS = SlaTargets(sla_class="batch", ttft_ms=1e6, tpot_ms=1e6)
NUM_WAITING = 8
MAX_MODEL_LEN = 16_384


@dataclass(slots=True)
class Node:
    """A core and what the bench asks of it."""

    core: NodeCore
    decode: DecodeGuest
    state: NodeState


def make_node(num_pages: int, overcommit: Overcommit) -> Node:
    """A node on which nothing but pages is scarce."""
    model = ModelIdentity(
        served_name="none",
        weights_fingerprint="w",
        tokenizer_fingerprint="t",
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        vocab_size=1000,
    )
    identity = NodeIdentity(
        node_id="d", incarnation=1, model=model, layout=LAYOUT, eos_token_ids=(EOS,)
    )
    state = NodeState(identity, PageLedger(num_pages), Emitter("d", 1), overcommit)
    services = Services(UNKNOWN_COSTS)

    def start_local(resident: Resident, now: float) -> None:
        prefill.start_local(resident, now)

    preemption = Preemption(state, None, PreemptionOptions("recompute"), start_local=start_local)
    incoming = IncomingTransfers(state.pool, LAYOUT, incarnation=1)
    decode = DecodeGuest(state, incoming, preemption, start_local=start_local)
    prefill = SharedPrefill(
        state,
        OutgoingTransfers(LAYOUT.page_size),
        FifoPrefill(),
        lookahead_tokens=8192,
        local=decode,
        services=services,
    )
    core = NodeCore(
        state,
        prefill=prefill,
        decode=decode,
        policy=make_batch_policy("fifo"),
        limits=Limits(1024, 4096, RoleWeights(prefill=1, decode=1)),
        services=services,
    )
    core.handle(Admitted(1), 0.0)
    return Node(core, decode, state)


def spec_of(
    number: int, lengths: Lengths, max_tokens: int, prediction: LengthPrediction
) -> RequestSpec:
    """A request whose prompt is its own, so that nothing is cached."""
    rng = random.Random(number)
    return RequestSpec(
        request_id=number.to_bytes(16, "big"),
        attempt=1,
        prompt_ids=TokenIds(rng.choices(range(2, 1000), k=lengths.num_prompt)),
        output_ids=TokenIds(),
        params=SamplingParams(max_tokens=max_tokens, temperature=0.0),
        seed=1,
        choice=0,
        tenant="default",
        priority=0,
        targets=TARGETS,
        deadline_s=None,
        sequence=number,
        prediction=prediction,
    )


def answer(step: Step, lengths: dict[bytes, int]) -> StepResult:
    """Any token, and the end where the trace has it."""
    keys = [*step.plan.decode, *(key for key, _ in step.plan.prefill)]
    sampled = [
        None
        if sequence.sample is None
        else Sampled(EOS if sequence.sample.output_index + 1 >= lengths[key[0]] else 2)
        for key, sequence in zip(keys, step.batch.sequences, strict=True)
    ]
    return StepResult(tuple(sampled))


def run(requests: list[Lengths], reserve: ReserveMode, num_pages: int, max_tokens: int) -> str:
    """One row of the table."""
    node = make_node(num_pages, Overcommit(reserve, 0 if reserve == "full" else num_pages // 100))
    outputs = [each.num_output for each in requests]
    q90 = quantiles(outputs, n=10)[-1]
    prediction = LengthPrediction(score=0.0, q50=sorted(outputs)[len(outputs) // 2], q90=q90)
    todo = dict(enumerate(requests, 1))
    lengths = {number.to_bytes(16, "big"): each.num_output for number, each in todo.items()}
    num_running: list[int] = []
    num_used: list[int] = []
    now = 0.0
    while todo or not node.core.is_idle:
        now += 0.05
        while todo and node.core.load(0.0).num_prefill_waiting < NUM_WAITING:
            number = next(iter(todo))
            spec = spec_of(number, todo.pop(number), max_tokens, prediction)
            node.core.handle(FromPeer(GATEWAY, Decode(spec=spec, prefill=None)), now)
        node.core.tick(now)
        node.state.emitter.drop_peer(GATEWAY)
        node.core.handle(FromPeer(GATEWAY, EmissionAck(taken=(), ended=())), now)
        step = node.core.plan(now)
        if step is not None:
            node.core.computed(step, answer(step, lengths), now)
        if todo:  # a full queue: what comes after is the drain
            num_running.append(len(node.decode.running()))
            counts = node.state.ledger.counts()
            num_used.append(counts.active)
    load = node.core.load(0.0)
    wasted = load.num_wasted_tokens / sum(each.num_final for each in requests)
    return (
        f"| {reserve} | {mean(num_running):.1f} | {mean(num_used) / num_pages:.0%} | "
        f"{load.num_steps} | {load.num_preempted} | {wasted:.1%} | {node.core.num_held} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, help="folder of traces; default: lengths drawn")
    parser.add_argument("--trace", default="sharegpt", help="which of them")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--pages", type=int, default=4096)
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[1024, 4096])
    options = parser.parse_args()
    print(describe_source(options.trace, options.traces), f"{options.pages} pages of 16")
    for max_tokens in options.max_tokens:
        longest = MAX_MODEL_LEN - max_tokens
        sample = sample_lengths(options.trace, options.traces, options.requests, 1, longest=longest)
        print(f"\nmax_tokens {max_tokens}")
        print("| reserve | running | pages in use | steps | preemptions | wasted tokens | held |")
        print("|-|-|-|-|-|-|-|")
        modes: tuple[ReserveMode, ...] = ("full", "predicted", "none")
        for reserve in modes:
            print(run(sample, reserve, options.pages, max_tokens), flush=True)


if __name__ == "__main__":
    main()
