"""Magnus: batches that waste little, an order that starves nobody, memory by prediction."""

import random

import pytest

from scheduling.batch.catalogue import make_batch_policy
from scheduling.batch.magnus import MagnusOptions, MagnusPolicy, wasted_reads
from scheduling.batch.magnus_continuous import num_predicted_pages
from scheduling.batch.serving_times import BatchShape, ServingTimes
from scheduling.costs import decode_step_s
from scheduling.views import NodeView, RequestKey, Services
from tests.scheduling.conformance.traces import predict
from tests.scheduling.conformance.world import COSTS, Arrival, Shape, World
from tests.scheduling.test_wait import crowded, row, view

SERVICES = Services(COSTS)


def test_wasted_reads_by_hand() -> None:
    """A row of 10 + 2 tokens in a batch of 13 + 5: 3 tokens of padding read in each of 2 steps,
    then reads of 13 + 2 to 13 + 5 tokens until the batch ends, in 3 steps."""
    assert wasted_reads(10, 2, 13, 5) == 2 * 3 + 3 * (13 + 3.5)
    assert wasted_reads(13, 5, 13, 5) == 0


def chosen(policy: MagnusPolicy, now: NodeView) -> set[int]:
    return numbers(policy.plan(now, SERVICES).admit)


def numbers(keys: tuple[RequestKey, ...]) -> set[int]:
    return {int.from_bytes(key[0], "big") for key in keys}


def test_a_batch_holds_what_is_alike() -> None:
    policy = MagnusPolicy(MagnusOptions(max_waste=2_000))
    waiting = [row(n, answer=(10, 300)[n % 2]) for n in range(8)]
    assert chosen(policy, view(1.0, waiting=waiting, running=[])) == {0, 2, 4, 6}
    left = [s for s in waiting if s.age % 2]
    assert chosen(policy, view(2.0, waiting=left, running=[])) == {1, 3, 5, 7}


def test_no_batch_outgrows_the_memory_that_is_predicted_for_it() -> None:
    policy = MagnusPolicy(MagnusOptions(max_waste=1e9, memory_share=1.0))
    waiting = [row(n, answer=83) for n in range(6)]  # 17 + 82 tokens each
    now = view(1.0, waiting=waiting, running=[])
    small = NodeView(
        now=now.now,
        max_num_seqs=8,
        max_num_batched_tokens=512,
        prefill_weight=1.0,
        decode_weight=1.0,
        prefill=(),
        waiting=now.waiting,
        running=(),
        num_pages=20,  # 320 tokens
        num_free_pages=10,
    )
    assert len(chosen(policy, small)) == 3


def test_the_highest_response_ratio_is_dispatched() -> None:
    """Short batches first, until a long one has waited for as many times its service."""
    long = [row(n, answer=300, at=0.0) for n in range(3)]
    short = [row(n, answer=10, at=0.4) for n in range(3, 6)]
    policy = MagnusPolicy(MagnusOptions(max_waste=2_000))
    assert chosen(policy, view(0.5, waiting=long + short, running=[])) == {3, 4, 5}
    newer = [row(n, answer=10, at=9.99) for n in range(6, 9)]
    assert chosen(policy, view(10.0, waiting=long + newer, running=[])) == {0, 1, 2}


def test_serving_times_are_learned_and_until_then_modelled() -> None:
    times = ServingTimes()
    shape = BatchShape(4, 100, 50.0)
    modelled = times.estimate_s(shape, SERVICES)
    assert modelled == pytest.approx(50 * decode_step_s(COSTS, 4, 500))
    for n in range(3):
        times.ended(BatchShape(4, 100 + n, 50.0), 2.0 + n)
    assert times.estimate_s(shape, SERVICES) == pytest.approx(3.0)
    unlike = BatchShape(64, 1000, 500.0)
    assert times.estimate_s(unlike, SERVICES) == pytest.approx(
        500 * decode_step_s(COSTS, 64, 64 * 1250)
    )


def families(num: int, seed: int = 5) -> list[Arrival]:
    """Six kinds of tasks, as in the paper: each with an answer length of its own."""
    rng = random.Random(seed)
    arrivals = []
    for n in range(num):
        num_answer = max(1, int((4, 8, 16, 24, 48, 64)[n % 6] * rng.uniform(0.8, 1.0)))
        arrivals.append(Arrival(0.01 * n, 16, num_answer, prediction=predict(num_answer)))
    return arrivals


def test_static_batches_by_prediction_are_faster_than_by_age() -> None:
    shape = Shape(num_pages=200, max_num_seqs=8, lookahead_tokens=10_000)
    latency = {
        name: World(make_batch_policy(name, options), families(120), shape).run().mean_latency_s
        for name, options in (
            ("static", {}),
            ("magnus", {"max_waste": "1000"}),
            ("magnus-cb", {}),
        )
    }
    assert latency["magnus"] < 0.8 * latency["static"]
    # Honest: continuous batching is what helps most.
    assert latency["magnus-cb"] < 0.7 * latency["magnus"]


def test_admission_by_predicted_memory_evicts_nobody_where_predictions_hold() -> None:
    """Measured: 0 instead of 43, at 11 % less mean latency."""
    assert crowded("fifo", 48, 40).num_preemptions > 20
    assert crowded("magnus-cb", 48, 40).num_preemptions == 0


def test_predicted_pages_never_fall_behind_the_truth() -> None:
    short = row(1, answer=20, num_output=5)  # 16 + q90 of 40 tokens
    assert num_predicted_pages(short, 16) == 4
    outgrown = row(1, answer=20, num_output=100)
    assert num_predicted_pages(outgrown, 16) == 8
    assert num_predicted_pages(row(1, answer=10_000), 16) == 25  # its limit: 399 tokens
