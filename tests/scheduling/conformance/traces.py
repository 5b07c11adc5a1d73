"""Requests for the conformance world, the same in every run."""

import math
import random
from dataclasses import replace

from tandem.messages.common import LengthPrediction
from tests.scheduling.conformance.world import Arrival


def predict(num_answer: float) -> LengthPrediction:
    return LengthPrediction(score=num_answer, q50=num_answer, q90=2 * num_answer)


def mixed(num: int, *, seed: int = 1, rate: float = 400.0) -> list[Arrival]:
    """Short and long, three tenants, two priorities, some with targets, some predicted."""
    rng = random.Random(seed)
    arrivals = []
    at = 0.0
    for n in range(num):
        at += rng.expovariate(rate)
        num_answer = min(64, 1 + int(rng.expovariate(1 / 14)))
        arrivals.append(
            Arrival(
                at=at,
                num_prompt=rng.choice((3, 16, 17, 40, 90)),
                num_answer=num_answer,
                priority=int(rng.random() < 0.2),
                tenant="abc"[n % 3],
                ttft_s=rng.choice((0.1, 1.0, math.inf)),
                tpot_s=rng.choice((0.01, 0.05, math.inf)),
                prediction=rng.choice((None, predict(num_answer))),
            )
        )
    return arrivals


def hostile(num: int, *, seed: int = 2) -> list[Arrival]:
    """Predictions that are absurd, one way or another."""
    rng = random.Random(seed)
    absurd = (
        LengthPrediction(score=-1e300, q50=0.0, q90=0.0),
        LengthPrediction(score=1e300, q50=1e9, q90=1e9),
        LengthPrediction(score=0.0, q50=500.0, q90=1.0),
        None,
    )
    return [replace(a, prediction=rng.choice(absurd)) for a in mixed(num, seed=seed)]


def burst(kind: str, *, num: int = 60, seed: int = 3) -> list[Arrival]:
    """All at once, heavy tails; predictions are the truth (`oracle`), near it, or `random`."""
    rng = random.Random(seed)
    noise = random.Random(seed + 1)
    lengths = [min(200, 2 + int(rng.paretovariate(1.1) * 4)) for _ in range(num)]
    shuffled = list(lengths)
    noise.shuffle(shuffled)
    arrivals = []
    for n, length in enumerate(lengths):
        guess = {
            "oracle": float(length),
            "predicted": length * math.exp(noise.gauss(0.0, 0.6)),
            "random": float(shuffled[n]),
        }[kind]
        arrivals.append(Arrival(0.0, 16, length, max_answer=200, prediction=predict(guess)))
    return arrivals
