"""Steps run at once give the results of single steps, to the last bit."""

import pytest

from simulator.performance.scenario import STEADY_POLICIES, simulate
from tests.performance.conftest import make_profile, make_scenario

EVEN = make_profile()
NOISY = make_profile(noise_sigma=0.2, stall_probability=0.02, stall_s=0.05)
SCARCE = make_profile(num_pages=150, max_num_seqs=3)


@pytest.mark.parametrize(
    "profile", [make_profile(), NOISY, SCARCE], ids=["even", "noisy", "scarce"]
)
@pytest.mark.parametrize("layout", ["2p2d", "3m", "1p1d1m"])
@pytest.mark.parametrize("policy", sorted(STEADY_POLICIES))
def test_results_are_equal_bit_for_bit(policy, layout, profile):
    fast, single = (
        simulate(
            make_scenario(
                layout,
                rate=25.0,
                profile=profile,
                batch_policy=policy,
                fast_forward=is_fast,
                num_requests=60,
            )
        )
        for is_fast in (True, False)
    )
    assert fast.num_events < single.num_events
    assert fast.meters.num_steps == single.meters.num_steps
    for a, b in zip(fast.requests, single.requests, strict=True):
        assert (a.first_token_at, a.finished_at) == (b.first_token_at, b.finished_at)
        assert (a.refusal, a.num_cached) == (b.refusal, b.num_cached)
    ours, theirs = fast.summary(), single.summary()
    del ours["num_events"], theirs["num_events"]
    assert ours == theirs
