"""Where theory has an answer, the simulator gives it."""

import pytest

from loadgen.traces import Trace, TraceRequest, constant_trace
from scheduling.costs import StepShape, num_pairs
from simulator.performance.scenario import simulate
from tests.performance.conftest import make_profile, make_scenario

CONTROL_S = 3 * 0.0005  # to the coordinator, back, to the node


def alone(num_prompt: int, num_output: int, layout: str, **changes):
    trace = Trace("one", (TraceRequest(0.0, num_prompt, num_output),), has_times=True)
    return simulate(make_scenario(layout, process="trace", rate=None, trace=trace, **changes))


def test_a_request_alone_takes_what_the_model_says():
    profile = make_profile()
    request = alone(200, 11, "1m").requests[0]
    prefill_s = profile.step_s(StepShape(200, num_pairs(200, 0)))
    assert request.ttft == pytest.approx(CONTROL_S + prefill_s)
    steps = [profile.step_s(StepShape(0, 0.0, 1, 201 + i)) for i in range(10)]
    assert request.tpot == pytest.approx(sum(steps) / 10)


def test_chunks_of_a_long_prompt_add_up():
    profile = make_profile()
    request = alone(600, 1, "1m").requests[0]
    chunks = ((256, 0), (256, 256), (88, 512))
    prefill_s = sum(profile.step_s(StepShape(n, num_pairs(n, c))) for n, c in chunks)
    assert request.ttft == pytest.approx(CONTROL_S + prefill_s)
    assert request.finished_at == request.first_token_at


def test_a_hand_off_delays_the_second_token_by_what_is_left_to_ship():
    """Earlier chunks are shipped while later ones compute; only the last one is waited for."""
    profile = make_profile()
    request = alone(600, 2, "1p1d").requests[0]
    last_pages = -(-600 // 16) - 512 // 16
    transfer_s = 0.001 + last_pages * 16 * 1000 / 1e8
    step_s = profile.step_s(StepShape(0, 0.0, 1, 601))
    assert request.finished_at - request.first_token_at == pytest.approx(transfer_s + step_s)


def test_one_server_with_constant_service_waits_as_m_d_1():
    """Pollaczek-Khinchine: the mean wait is rho * service / (2 * (1 - rho))."""
    rho = 0.7
    service_s = make_profile().step_s(StepShape(256, num_pairs(256, 0)))
    result = simulate(
        make_scenario(
            "1m",
            rate=rho / service_s,
            trace=constant_trace(256, 1),
            num_requests=5000,
            seed=5,
            max_queued_tokens_per_node=10**9,
        )
    )
    waits = [(r.ttft or 0.0) - CONTROL_S - service_s for r in result.measured]
    wait_s = rho * service_s / (2 * (1 - rho))
    assert sum(waits) / len(waits) == pytest.approx(wait_s, rel=0.12)
    assert result.summary()["busy_share"] == pytest.approx(rho, rel=0.05)
