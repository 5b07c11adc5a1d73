"""Token counts of requests from a few words: `128`, `uniform:64:256`, `normal:128:32`,
`lognormal:200:0.8:2048`. Pure."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

FORMS = "N, uniform:LOW:HIGH, normal:MEAN:DEVIATION, or lognormal:MEDIAN:SIGMA:LONGEST"
Draw = Callable[[random.Random], float]


@dataclass(frozen=True, slots=True)
class LengthSource:
    """Draws whole numbers of at least 1."""

    text: str
    draw: Draw

    def sample(self, count: int, seed: int) -> list[int]:
        """`count` lengths; the same seed gives the same."""
        rng = random.Random(f"{self.text} {seed}")
        return [max(1, round(self.draw(rng))) for _ in range(count)]


def parse_lengths(text: str) -> LengthSource:
    """Raises ValueError that names the forms there are."""
    kind, *rest = text.split(":")
    try:
        numbers = [float(each) for each in (rest if rest else [kind])]
    except ValueError:
        numbers = []
    if not all(math.isfinite(each) and 0 <= each <= 1e7 for each in numbers):
        numbers = []
    match (kind if rest else "constant", numbers):
        case ("constant", [length]) if length >= 1:
            return LengthSource(text, lambda _: length)
        case ("uniform", [low, high]) if 1 <= low <= high:
            return LengthSource(text, lambda rng: rng.uniform(low, high))
        case ("normal", [mean, deviation]) if mean >= 1:
            return LengthSource(text, lambda rng: rng.gauss(mean, deviation))
        case ("lognormal", [median, sigma, longest]) if median >= 1 and longest >= median:
            return LengthSource(
                text, lambda rng: min(longest, rng.lognormvariate(math.log(median), sigma))
            )
    raise ValueError(f"lengths {text!r}: give {FORMS}, in tokens")
