"""What every engine is asked: prompts of random ids, long-tailed answers. Pure."""

import math
import random
from dataclasses import dataclass

from benchmarks.cpu_peers.workers.channel import Request
from loadgen.checkpoint import Shape

MEDIAN_TOKENS, SIGMA = 48, 1.0
SHORTEST, LONGEST = 8, 256
FIRST_ID = 3


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is asked. The figures of the reference come from `FULL`."""

    num_requests: int
    prompt_len: int
    num_single_tokens: int
    long_prompt_len: int
    num_exact: int
    num_exact_tokens: int


FULL = Scale(32, 128, 48, 1024, 8, 32)
QUICK = Scale(4, 32, 8, 128, 2, 8)


@dataclass(frozen=True, slots=True)
class Work:
    """The tasks of one run: `batch` at once, `single` and `long` alone, `exact` to compare."""

    warm_up: list[Request]
    batch: list[Request]
    single: list[Request]
    long: list[Request]
    exact: list[Request]

    @property
    def num_output_tokens(self) -> int:
        """Of the batch."""
        return sum(each.num_tokens for each in self.batch)


def output_lengths(count: int, seed: int) -> list[int]:
    """Lognormal, median 48, sigma 1, within 8 to 256 tokens."""
    rng = random.Random(seed)
    drawn = (rng.lognormvariate(math.log(MEDIAN_TOKENS), SIGMA) for _ in range(count))
    return [min(LONGEST, max(SHORTEST, round(each))) for each in drawn]


def draw_work(scale: Scale, vocab_size: int, seed: int, run: int) -> Work:
    """The same lengths in every run, new prompts: no engine finds them in a prefix cache."""
    rng = random.Random(f"{seed} {run}")

    def request(prompt_len: int, num_tokens: int) -> Request:
        ids = [rng.randrange(FIRST_ID, vocab_size) for _ in range(prompt_len)]
        return Request(ids, num_tokens)

    short = scale.prompt_len
    return Work(
        warm_up=[request(short, 8) for _ in range(min(8, scale.num_requests))],
        batch=[request(short, n) for n in output_lengths(scale.num_requests, seed)],
        single=[request(short, scale.num_single_tokens)],
        long=[request(scale.long_prompt_len, 1)],
        exact=[request(short, scale.num_exact_tokens) for _ in range(scale.num_exact)],
    )


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this machine does with these threads: a plain read, a large product of each dtype."""

    read_gb_per_s: float
    gflop_per_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class Roofline:
    """What no engine beats: weights read once per step, products at the machine's best rate.

    Attention and the reading of KV are left out, so the true limit is a little lower.
    """

    tokens_per_s: float
    tpot_ms: float
    ttft_ms: float


def roofline(shape: Shape, dtype: str, ceilings: Ceilings, scale: Scale, work: Work) -> Roofline:
    """Every prompt token passes the layers, every output token the output layer too."""
    table = shape.vocab_size * shape.hidden_size
    layers = shape.num_parameters - 2 * table
    rate = ceilings.gflop_per_s[dtype] * 1e9
    num_prompt = sum(len(each.prompt_ids) for each in work.batch)
    flop = 2 * (num_prompt * layers + work.num_output_tokens * (layers + table))
    weight_bytes = (layers + table) * (2 if dtype == "bfloat16" else 4)
    return Roofline(
        tokens_per_s=work.num_output_tokens / (flop / rate),
        tpot_ms=weight_bytes / (ceilings.read_gb_per_s * 1e9) * 1e3,
        ttft_ms=2 * scale.long_prompt_len * (layers + table) / rate * 1e3,
    )
