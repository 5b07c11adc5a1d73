"""Buckets: a batch of one length, formed within a window."""

import pytest

from scheduling.batch.buckets import BucketOptions, BucketPolicy, length_bucket
from scheduling.batch.catalogue import make_batch_policy
from scheduling.costs import UNKNOWN_COSTS
from scheduling.views import Services
from tests.scheduling.conformance.world import Shape, World
from tests.scheduling.test_magnus import families, numbers
from tests.scheduling.test_wait import row, view

SERVICES = Services(UNKNOWN_COSTS)


@pytest.mark.parametrize(
    ("num_tokens", "bucket"), [(1, 0), (32, 0), (33, 1), (64, 1), (65, 2), (128, 2), (129, 3)]
)
def test_buckets_double(num_tokens: int, bucket: int) -> None:
    assert length_bucket(num_tokens, 32, 2.0) == bucket


def test_a_batch_is_one_bucket_and_waits_for_the_window() -> None:
    policy = BucketPolicy(BucketOptions(window_s=0.1))
    waiting = [row(0, answer=20), row(1, answer=100), row(2, answer=25)]
    plan = policy.plan(view(1.0, waiting=waiting, running=[]), SERVICES)
    assert (plan.admit, plan.wake_at) == ((), 1.1)
    plan = policy.plan(view(1.1, waiting=waiting, running=[]), SERVICES)
    assert numbers(plan.admit) == {0, 2}
    assert (
        policy.plan(view(1.2, waiting=[row(1, answer=100)], running=[row(0)]), SERVICES).admit == ()
    )
    plan = policy.plan(view(1.3, waiting=[row(1, answer=100), row(3)], running=[]), SERVICES)
    assert numbers(plan.admit) == {1}  # the bucket that has waited longest


def test_a_full_bucket_does_not_wait() -> None:
    policy = BucketPolicy(BucketOptions(window_s=10.0))
    waiting = [row(n, answer=20) for n in range(4)]
    assert len(policy.plan(view(1.0, waiting=waiting, running=[], rows=4), SERVICES).admit) == 4


def test_alike_lengths_waste_fewer_rows_than_mixed_ones() -> None:
    shape = Shape(num_pages=200, max_num_seqs=8, lookahead_tokens=10_000)

    def mean(name: str, **options: str) -> float:
        return World(make_batch_policy(name, options), families(120), shape).run().mean_latency_s

    assert mean("buckets", smallest="8") < 0.9 * mean("static-dropping")
