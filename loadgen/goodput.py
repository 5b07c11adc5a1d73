"""Goodput as vLLM and SGLang count it, so that figures compare. Pure.

A request is good when every target that was given holds for it: TTFT; TPOT, which is
(end - TTFT) / (tokens - 1), and 0 for a single token; and end-to-end latency. Requests that failed
were sent and are not good. Goodput alone can be raised by dropping or by holding tokens back: it
is shown beside what was refused and the tail of the gaps between tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from loadgen.measure import RequestSample

NAMES = {"ttft": "ttft_s", "tpot": "tpot_s", "e2el": "e2el_s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """In seconds; None: any time will do."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2el_s: float | None = None

    def is_good(self, sample: RequestSample) -> bool:
        """Whether all of them hold."""
        tpot_s = sample.tpot_s or 0.0
        pairs = ((sample.ttft_s, self.ttft_s), (tpot_s, self.tpot_s), (sample.end_s, self.e2el_s))
        return all(limit is None or value <= limit for value, limit in pairs)


def parse_targets(texts: Sequence[str]) -> Targets:
    """Targets from `ttft:500`, `tpot:50`, `e2el:5000`, in ms. Raises ValueError."""
    given: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition(":")
        try:
            limit_ms = float(value)
        except ValueError:
            limit_ms = -1.0
        if name not in NAMES or not 0 < limit_ms < 1e9:
            raise ValueError(
                f"--goodput {text!r} is not NAME:MS with NAME one of {', '.join(NAMES)} and MS "
                "above 0: write, for example, --goodput ttft:500 tpot:50"
            )
        given[NAMES[name]] = limit_ms / 1e3
    return Targets(**given)
