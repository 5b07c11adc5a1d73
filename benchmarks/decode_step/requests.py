"""A node's core with requests that decode, and what it takes to plan and account for their steps.

The requests come in as commands of a gateway do, prompts computed here; the first steps, which
compute prompts, run on a device that computes nothing, so that decoding begins at once.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from benchmarks.decode_step.stages import PAGE_SIZE
from decode_node.guest import DecodeGuest
from decode_node.preemption import Preemption, PreemptionOptions
from engine.batch import build_batch
from engine.parts import cut_step
from kv_transfer.incoming import IncomingTransfers
from kv_transfer.outgoing import OutgoingTransfers
from node.actions import NodeAction, Reply
from node.core import Admitted, FromPeer, Limits, NodeCore
from node.emitter import Emitter
from node.ledger import PageLedger
from node.resident import Resident
from node.runner import Sampled, SequenceStep, StepBatch, StepResult
from node.state import NodeIdentity, NodeState
from prefill_node.role import SharedPrefill
from scheduling.batch.catalogue import make_batch_policy
from scheduling.costs import UNKNOWN_COSTS
from scheduling.prefill.catalogue import make_prefill_policy
from scheduling.views import RequestKey, Services
from tandem.frames import TokenIds
from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity, SlaTargets
from tandem.messages.membership import RoleWeights
from tandem.messages.serving import Decode, Emission, EmissionAck, RequestSpec, TokensTaken
from tandem.sampling import SamplingParams

GATEWAY = b"gateway/bench/1"
PROMPT = 128
MAX_TOKENS = 1000
MAX_TOKENS_PER_STEP = 4096


@dataclass(frozen=True, slots=True)
class HostTimes:
    """Median seconds of processor time that the host's part of a step takes.

    schedule_s: what runs next; asked_s: the same by asking the policy, as steps do that are not
    steady. rows_s: the next tokens of what runs. build_s: these as a device's tensors.
    """

    num_rows: int
    schedule_s: float
    asked_s: float
    rows_s: float
    build_s: float
    computed_s: float
    tick_s: float


class TimedGuest(DecodeGuest):
    """Tells how long it took to make rows."""

    rows_s = 0.0

    def steps(
        self, keys: Sequence[RequestKey], now: float
    ) -> tuple[Sequence[RequestKey], list[SequenceStep]]:
        """As the guest."""
        began = time.thread_time()
        found = super().steps(keys, now)
        self.rows_s = time.thread_time() - began
        return found


def decoding_core(layout: KVLayout, num_pages: int, num_rows: int, vocab_size: int) -> NodeCore:
    """A core in which `num_rows` requests have their first token and want many more."""
    return _decoding(layout, num_pages, num_rows, vocab_size, is_steady=True)[0]


def _decoding(
    layout: KVLayout, num_pages: int, num_rows: int, vocab_size: int, *, is_steady: bool
) -> tuple[NodeCore, TimedGuest]:
    core, guest = _core(layout, num_pages, num_rows, vocab_size, is_steady=is_steady)
    core.handle(Admitted(1), 0.0)
    rng = np.random.default_rng(0)
    for n in range(num_rows):
        prompt = rng.integers(1, vocab_size, PROMPT).astype(np.int32)
        core.handle(FromPeer(GATEWAY, Decode(spec=_spec(n, prompt), prefill=None)), 0.0)
    while True:
        now = time.monotonic()
        acknowledge(core, core.tick(now))
        step = core.plan(now)
        assert step is not None
        if not step.plan.prefill and len(step.plan.decode) == num_rows:
            return core, guest
        core.computed(step, drawn(step.batch), now)


def drawn(batch: StepBatch) -> StepResult:
    """What a device that computes nothing draws."""
    token = Sampled(5)
    return StepResult(tuple(token if s.sample is not None else None for s in batch.sequences))


def host_times(layout: KVLayout, num_rows: int, num_steps: int) -> HostTimes:
    """The parts of decode steps whose device takes no time."""
    steady, asked = (
        _part_times(layout, num_rows, num_steps, is_steady=is_steady) for is_steady in (True, False)
    )
    schedule_s, rows_s, build_s, computed_s, tick_s = steady
    return HostTimes(num_rows, schedule_s, asked[0], rows_s, build_s, computed_s, tick_s)


def _part_times(
    layout: KVLayout, num_rows: int, num_steps: int, *, is_steady: bool
) -> tuple[float, ...]:
    """Median seconds of schedule, rows, batch, bookkeeping and tick."""
    num_pages = num_rows * layout.num_pages_for(PROMPT + MAX_TOKENS)
    core, guest = _decoding(layout, num_pages, num_rows, 1000, is_steady=is_steady)
    times: list[tuple[float, ...]] = []
    for _ in range(num_steps):
        marks = [time.thread_time()]
        step = core.plan(time.monotonic())
        assert step is not None
        marks.append(time.thread_time())
        for part in cut_step(step.batch, 1, 0.0):
            build_batch(part.step, PAGE_SIZE, num_pages, None)
        marks.append(time.thread_time())
        result = drawn(step.batch)
        began = time.thread_time()
        actions = core.computed(step, result, time.monotonic())
        marks.append(marks[-1] + time.thread_time() - began)
        began = time.thread_time()
        core.tick(time.monotonic())
        marks.append(marks[-1] + time.thread_time() - began)
        acknowledge(core, actions)
        del step, part, result, actions  # as the step loop does: their memory is used again
        plan_s, *others = (b - a for a, b in pairwise(marks))
        times.append((plan_s - guest.rows_s, guest.rows_s, *others))
    return tuple(float(v) for v in np.median(times, axis=0))


def acknowledge(core: NodeCore, actions: list[NodeAction]) -> None:
    """The gateway has what was emitted, at once."""
    for action in actions:
        if isinstance(action, Reply) and isinstance(action.message, Emission):
            taken = tuple(
                TokensTaken(
                    request_id=delta.request_id,
                    attempt=delta.attempt,
                    next_index=delta.start + len(delta.ids),
                )
                for delta in action.message.deltas
            )
            core.handle(FromPeer(GATEWAY, EmissionAck(taken=taken, ended=())), time.monotonic())


def _spec(n: int, prompt: NDArray[np.int32]) -> RequestSpec:
    return RequestSpec(
        request_id=n.to_bytes(16, "big"),
        attempt=1,
        prompt_ids=TokenIds(prompt),
        output_ids=TokenIds(),
        params=SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0),
        seed=n,
        choice=0,
        tenant="default",
        priority=0,
        targets=SlaTargets(sla_class="standard", ttft_ms=500.0, tpot_ms=50.0),
        deadline_s=None,
        sequence=n,
    )


def _core(
    layout: KVLayout, num_pages: int, num_rows: int, vocab_size: int, *, is_steady: bool
) -> tuple[NodeCore, TimedGuest]:
    """A mixed node without shell, as `node/__main__.py` composes it."""
    model = ModelIdentity(
        served_name="bench",
        weights_fingerprint="w",
        tokenizer_fingerprint="t",
        dtype=layout.dtype,
        max_model_len=2 * MAX_TOKENS,
        vocab_size=vocab_size,
    )
    identity = NodeIdentity("bench", 1, model, layout, eos_token_ids=())
    state = NodeState(identity, PageLedger(num_pages), Emitter("bench", 1))
    services = Services(UNKNOWN_COSTS)

    def start_local(resident: Resident, now: float) -> None:
        prefill.start_local(resident, now)

    preemption = Preemption(state, None, PreemptionOptions(), start_local=start_local)
    incoming = IncomingTransfers(state.pool, layout, incarnation=1)
    decode = TimedGuest(state, incoming, preemption, start_local=start_local)
    prefill = SharedPrefill(
        state,
        OutgoingTransfers(layout.page_size),
        make_prefill_policy("fifo"),
        lookahead_tokens=num_rows * PROMPT,
        local=decode,
        services=services,
    )
    core = NodeCore(
        state,
        prefill=prefill,
        decode=decode,
        policy=make_batch_policy("fifo"),
        limits=Limits(num_rows, MAX_TOKENS_PER_STEP, RoleWeights(prefill=1, decode=1)),
        services=services,
        is_steady=is_steady,
    )
    return core, decode
