"""Three hundred seeds, and the branches that they must reach: all invariants in each of them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from simulator.run import Outcome

NUM_SEEDS = 300
BATCH = 15
NUM_FOR_LABELS = 120
REGRESSIONS = Path(__file__).with_name("regressions.txt")

# A simulation that never gets there proves nothing about it.
MUST_BE_REACHED = (
    "Adopt",
    "Adopted",
    "AskAttempt",
    "AttemptStatus",
    "PagesRead",
    "PlaceRefused",
    "Rejoin",
    "ReserveDenied",
    "ReserveQueued",
    "Resume",
    "Revoke",
    "WriteFailed",
    "WriterGone",
    "another process answers at an owner's address",
    "cache snapshot asked for",
    "checksum mismatch",
    "client reconnects",
    "commit refused",
    "coordinator restart mid-request",
    "drained",
    "fail-over mid-decode",
    "gateway silent",
    "move asked for",
    "pages draining",
    "rejoin",
    "resumed on another gateway",
    "roles changed",
    "suffix hit",
)


def explain(outcome: Outcome) -> str:
    """A failed seed, and how to see it again."""
    trace = "\n".join(outcome.last_lines)
    return f"{trace}\n{outcome.error}\nREPRO: scripts/simulate --seed {outcome.seed} --trace"


@pytest.mark.parametrize("first", range(0, NUM_SEEDS, BATCH))
def test_every_invariant_holds(outcome_of: Callable[[int], Outcome], first: int) -> None:
    for seed in range(first, first + BATCH):
        outcome = outcome_of(seed)
        assert outcome.error is None, explain(outcome)


def regressions() -> list[int]:
    """Seeds that once found something."""
    lines = REGRESSIONS.read_text().splitlines()
    return [int(line.split()[0]) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("seed", regressions())
def test_what_was_found_stays_fixed(outcome_of: Callable[[int], Outcome], seed: int) -> None:
    outcome = outcome_of(seed)
    assert outcome.error is None, explain(outcome)


def test_the_branches_are_reached(outcome_of: Callable[[int], Outcome]) -> None:
    labels: Counter[str] = Counter()
    for seed in range(NUM_FOR_LABELS):
        labels += outcome_of(seed).labels
    missed = [label for label in MUST_BE_REACHED if not labels[label]]
    assert not missed, f"{NUM_FOR_LABELS} seeds never reached: {missed}"
