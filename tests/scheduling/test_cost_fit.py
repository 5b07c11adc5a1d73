"""Costs fitted online: what they recover, what they ignore, and that they never explode."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling.cost_fit import NUM_COLD, StepFit, TransferFit
from scheduling.costs import UNKNOWN_COSTS, StepShape, num_pairs, step_s, transfer_s
from scheduling.relative_fit import NormalEquations, solve
from tandem.messages.common import NodeCosts

TRUE = NodeCosts(
    step_s=4e-3,
    prefill_token_s=1.2e-4,
    prefill_context_s=3e-8,
    decode_row_s=3e-4,
    decode_context_s=6e-7,
)
COEFFICIENTS = (
    "step_s", "prefill_token_s", "prefill_context_s", "decode_row_s", "decode_context_s",
)  # fmt: skip


def shape(rng: random.Random) -> StepShape:
    """Chunks and rows as a busy node has them: a third each of pure and mixed steps."""
    kind = rng.randrange(3)
    num_new = rng.randint(16, 2048) if kind != 1 else 0
    rows = rng.randint(1, 64) if kind != 0 else 0
    return StepShape(
        num_new,
        num_pairs(num_new, rng.choice([0, 500, 4000, 16_000])) if num_new else 0.0,
        rows,
        sum(rng.randint(20, 4000) for _ in range(rows)),
    )


def feed(
    fit: StepFit, costs: NodeCosts, num_steps: int, rng: random.Random, noise: float = 0.03
) -> None:
    for _ in range(num_steps):
        each = shape(rng)
        fit.take(each, step_s(costs, each) * math.exp(rng.gauss(0, noise)))


def scaled(costs: NodeCosts, factor: float) -> NodeCosts:
    return NodeCosts(**{name: factor * getattr(costs, name) for name in COEFFICIENTS})


def held_out_error(fit: StepFit, costs: NodeCosts) -> float:
    shapes = [shape(random.Random(n)) for n in range(1000, 1200)]
    errors = [abs(step_s(fit.costs, s) / step_s(costs, s) - 1) for s in shapes]
    return sorted(errors)[len(errors) * 9 // 10]


@pytest.mark.parametrize("factor", [0.02, 1.0, 50.0])
@pytest.mark.parametrize("seed", range(3))
def test_coefficients_are_recovered_from_noisy_steps(factor: float, seed: int) -> None:
    true = scaled(TRUE, factor)
    fit = StepFit()
    feed(fit, true, 3000, random.Random(seed))
    for name in COEFFICIENTS:
        assert getattr(fit.costs, name) == pytest.approx(getattr(true, name), rel=0.05), name
    assert held_out_error(fit, true) < 0.02
    assert 0.01 < fit.costs.error < 0.03
    assert fit.costs.num_steps > 2900


def test_a_prior_serves_until_steps_came_and_hardly_counts_then() -> None:
    prior = scaled(TRUE, 7)
    fit = StepFit(prior)
    assert fit.costs is prior
    feed(fit, TRUE, 1000, random.Random(1))
    assert held_out_error(fit, TRUE) < 0.03


def test_cold_steps_and_outliers_teach_nothing() -> None:
    rng = random.Random(2)
    fit = StepFit()
    for _ in range(NUM_COLD):
        assert not fit.take(shape(rng), 30.0)
    for n in range(2000):
        each = shape(rng)
        slow = rng.choice([8.0, 300.0]) if n > 100 and n % 12 == 0 else 1.0
        fit.take(each, slow * step_s(TRUE, each) * math.exp(rng.gauss(0, 0.03)))
    assert held_out_error(fit, TRUE) < 0.03
    assert fit.costs.num_steps < 1900


@pytest.mark.parametrize("factor", [0.4, 1.5, 2.5, 9.0])
def test_a_node_that_changes_speed_is_known_again_soon(factor: float) -> None:
    rng = random.Random(3)
    fit = StepFit()
    feed(fit, TRUE, 2000, rng)
    feed(fit, scaled(TRUE, factor), 400, rng)
    assert held_out_error(fit, scaled(TRUE, factor)) < 0.1
    feed(fit, scaled(TRUE, factor), 2000, rng)
    assert held_out_error(fit, scaled(TRUE, factor)) < 0.05


def test_what_is_not_seen_for_long_is_not_forgotten() -> None:
    rng = random.Random(4)
    fit = StepFit()
    feed(fit, TRUE, 1000, rng)
    for n in range(20_000):
        each = StepShape(num_decode_rows=8, num_decode_tokens=8000 + n % 100)
        fit.take(each, step_s(TRUE, each) * math.exp(rng.gauss(0, 0.03)))
    prompt = StepShape(1000, num_pairs(1000, 0))
    assert step_s(fit.costs, prompt) == pytest.approx(step_s(TRUE, prompt), rel=0.1)


def test_steps_that_never_vary_are_predicted_and_explode_nowhere() -> None:
    fit = StepFit()
    same = StepShape(num_decode_rows=4, num_decode_tokens=2000)
    for _ in range(500):
        fit.take(same, 0.02)
    assert step_s(fit.costs, same) == pytest.approx(0.02, rel=0.01)
    twice = StepShape(num_decode_rows=8, num_decode_tokens=4000)
    assert 0.02 <= step_s(fit.costs, twice) <= 0.0401
    assert fit.costs.prefill_token_s == UNKNOWN_COSTS.prefill_token_s


samples = st.lists(
    st.tuples(
        st.integers(0, 10**5), st.integers(0, 500), st.integers(0, 10**6), st.floats(1e-7, 1e6)
    ),
    max_size=120,
)


@settings(max_examples=40, deadline=None)
@given(samples)
def test_whatever_is_measured_costs_are_finite_and_not_negative(
    steps: list[tuple[int, int, int, float]],
) -> None:
    fit = StepFit()
    for num_new, rows, tokens, seconds in steps:
        fit.take(StepShape(num_new, num_pairs(num_new, tokens), rows, tokens), seconds)
    for value in (*(getattr(fit.costs, name) for name in COEFFICIENTS), fit.costs.error):
        assert 0 <= value <= 1e9


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_what_is_no_duration_is_left_out(seconds: float) -> None:
    fit = StepFit()
    for _ in range(50):
        assert not fit.take(StepShape(16, 128.0), seconds)
    assert fit.costs is UNKNOWN_COSTS


def test_constrained_solutions_are_optimal() -> None:
    """Karush-Kuhn-Tucker: no gradient where a coefficient is free, none that would lower a zero."""
    rng = np.random.default_rng(5)
    for _ in range(30):
        equations = NormalEquations(5, 1000)
        equations.add(rng.normal(size=(40, 5)), rng.uniform(0.5, 2, size=40))
        found = solve([equations], np.zeros(5), np.ones(5))
        assert found.min() >= 0
        ridge = 1e-4 * np.diagonal(equations.gram)
        gradient = equations.gram @ found + ridge * found - equations.moment
        assert np.abs(gradient[found > 0]).max(initial=0) < 1e-6
        assert gradient[found == 0].min(initial=0) > -1e-6


def test_transfers_are_a_constant_and_a_bandwidth() -> None:
    rng = random.Random(6)
    true = NodeCosts(**dict.fromkeys(COEFFICIENTS, 0.0), transfer_s=2e-3,
                     transfer_bytes_per_s=1.5e9)  # fmt: skip
    fit = TransferFit()
    for n in range(600):
        num_bytes = rng.randint(10**4, 10**8)
        slow = 50.0 if n % 15 == 14 else 1.0
        fit.take(num_bytes, slow * transfer_s(true, num_bytes) * math.exp(rng.gauss(0, 0.05)))
    fitted = fit.apply(UNKNOWN_COSTS)
    assert fitted.transfer_s == pytest.approx(2e-3, rel=0.05)
    assert fitted.transfer_bytes_per_s == pytest.approx(1.5e9, rel=0.05)
    assert fitted.step_s == UNKNOWN_COSTS.step_s


def test_transfers_whose_bytes_do_not_matter_have_no_bandwidth() -> None:
    fit = TransferFit()
    for n in range(100):
        fit.take(10_000 * (100 - n), 1e-3)
    assert fit.transfer_s == pytest.approx(1e-3, rel=0.05)
    assert fit.bytes_per_s == 0 or fit.bytes_per_s > 1e9


def test_prompts_of_one_length_do_not_make_long_ones_look_hopeless() -> None:
    """Nothing tells a token's cost from a pair's then: the long prompt is not to be off by 10."""
    rng = random.Random(5)
    fit = StepFit()
    short = StepShape(30, num_pairs(30, 0))
    for _ in range(60):
        fit.take(short, step_s(TRUE, short) * math.exp(rng.gauss(0, 0.03)))
    long = StepShape(600, num_pairs(600, 0))
    if_all_is_tokens = 20 * step_s(TRUE, short)
    assert step_s(fit.costs, long) < 2 * if_all_is_tokens
