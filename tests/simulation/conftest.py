"""Seeds run at most once per session, and quiet deployments to which a test does one thing."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from simulator.knobs import Knobs, draw
from simulator.run import Outcome, Simulation, run_seed


@pytest.fixture(scope="session")
def outcome_of() -> Callable[[int], Outcome]:
    """The outcome of a seed."""
    outcomes: dict[int, Outcome] = {}

    def run(seed: int) -> Outcome:
        if seed not in outcomes:
            outcomes[seed] = run_seed(seed)
        return outcomes[seed]

    return run


CALM = Knobs(
    seed=1,
    roles=((1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, 1.0)),
    num_gateways=2,
    num_requests=12,
    safety_s=1.0,
    transport="shared_memory",
    pages=(64, 64, 64, 64),
    max_num_seqs=16,
    max_num_batched_tokens=64,
    lookahead_tokens=400,
    max_prompt=60,
    max_output=100,
    vocab_size=1_000_000,
    num_families=3,
    step_s=0.05,
    page_copy_s=0.001,
    tick_s=0.05,
    loss=0.0,
    duplication=0.0,
    delay_s=0.0005,
    is_ordered=True,
    transfer_lease_s=20.0,
    faults=frozenset(),
    fault_every_s=1.0,
    corruption=0.0,
)


@pytest.fixture
def calm() -> Callable[..., Simulation]:
    """`calm(**changes)`: a deployment without faults; requests come within its first second."""

    def make(**changes) -> Simulation:
        return Simulation(replace(CALM, **changes))

    return make


@pytest.fixture
def drawn() -> Callable[..., Simulation]:
    """`drawn(seed, **changes)`: the scenario of a seed, changed."""

    def make(seed: int, **changes) -> Simulation:
        return Simulation(replace(draw(seed), **changes))

    return make
