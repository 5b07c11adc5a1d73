"""The fluid limit of a decode node: how many requests it settles at, and when it has no limit.

From "Optimizing LLM Inference: Fluid-Guided Online Scheduling with Memory Constraints" (Ao et al.,
2025, arXiv 2504.11320). Pure formulae; `scheduling.batch.wait` takes its thresholds from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestType:
    """Requests alike in length that come at `rate` per second; lengths in tokens."""

    rate: float
    num_prompt: float
    num_answer: float

    @property
    def num_stages(self) -> float:
        """Iterations that a request is in: one for its prompt, one for each token."""
        return self.num_answer + 1

    @property
    def token_iterations(self) -> float:
        """KV tokens summed over the iterations that it is in: (l' + 1)(l + l'/2)."""
        return self.num_stages * (self.num_prompt + self.num_answer / 2)


@dataclass(frozen=True, slots=True)
class Equilibrium:
    """Where it settles: seconds of an iteration, KV tokens, requests that enter per iteration."""

    iteration_s: float
    num_tokens: float
    entries: tuple[float, ...]


def equilibrium(
    types: Sequence[RequestType], *, base_s: float, token_s: float
) -> Equilibrium | None:
    """The fluid equilibrium of iterations that take `base_s + token_s * KV tokens`.

    In it as many of each type enter per iteration as come in its time, n = rate * tau, and each
    stays for its stages: M = sum of n * (l' + 1)(l + l'/2). With tau = d0 + d1 * M that gives
    tau = d0 / (1 - d1 * sum of rate * (l' + 1)(l + l'/2)). None where the bracket is not positive:
    requests come faster than tokens can be made, whatever the memory. (A finite M is stable only
    if the node's pages hold it.)
    """
    load = sum(t.rate * t.token_iterations for t in types)
    slack = 1 - token_s * load
    if slack <= 0:
        return None
    iteration_s = base_s / slack
    return Equilibrium(iteration_s, iteration_s * load, tuple(t.rate * iteration_s for t in types))


def entries_at_rows(types: Sequence[RequestType], num_rows: int) -> tuple[float, ...]:
    """Entries per iteration of each type that together keep `num_rows` requests in the node.

    In proportion to their rates, as in the fluid: n_j = rows * rate_j / sum of rate * (l' + 1).
    """
    stages = sum(t.rate * t.num_stages for t in types)
    return tuple(num_rows * t.rate / stages if stages > 0 else 0.0 for t in types)
