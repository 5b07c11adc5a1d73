"""What a seed draws: the sizes of the system and the rates of its faults, which may be none."""

import random
from dataclasses import dataclass, replace
from typing import Literal

from node.growth import ReserveMode

FAULTS = (
    "kill_node",
    "freeze_node",
    "kill_coordinator",
    "freeze_coordinator",
    "kill_gateway",
    "partition",
    "clog",
    "corrupt",
    "drain",
    "client",
    "slow_node",
)

MAX_WORK_S = 10.0  # what the decode nodes may need for all answers


@dataclass(frozen=True, slots=True)
class Knobs:
    """One scenario. `faults` names the kinds that may happen, one every `fault_every_s` or so."""

    seed: int
    roles: tuple[tuple[float, float], ...]  # prefill and decode weight of each node
    num_gateways: int
    num_requests: int
    safety_s: float
    transport: str  # "shared_memory", "zmq", or "mixed": drawn per pair
    pages: tuple[int, ...]
    max_num_seqs: int
    max_num_batched_tokens: int
    lookahead_tokens: int
    max_prompt: int
    max_output: int
    vocab_size: int
    num_families: int  # prompts of one family share a prefix
    step_s: float
    page_copy_s: float
    tick_s: float
    loss: float
    duplication: float
    delay_s: float
    is_ordered: bool
    transfer_lease_s: float
    faults: frozenset[str]
    fault_every_s: float
    corruption: float
    batch_policy: str = "fifo"
    keeps_address: bool = True  # a restarted node listens where its predecessor did
    is_encoded: bool = False  # messages go through the codec, with its limits
    flips_roles: bool = False  # an operator gives nodes other roles all the time; that is no fault
    reserve: ReserveMode = "full"
    preemption: Literal["auto", "recompute", "swap"] = "auto"
    num_watermark_pages: int = 0
    num_swap_pages: int = 0


ROLES = (
    ((1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, 1.0)),
    ((1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, 1.0)),
    ((1.0, 0.0), (1.0, 1.0), (0.0, 1.0)),
    ((1.0, 1.0), (1.0, 1.0)),
    ((1.0, 0.0), (0.0, 1.0)),
)


def draw_faults(rng: random.Random) -> frozenset[str]:
    """Swarm: none, one kind, or about half of all kinds."""
    kind = rng.random()
    if kind < 0.12:
        return frozenset()
    if kind < 0.55:
        return frozenset({rng.choice(FAULTS)})
    return frozenset(fault for fault in FAULTS if rng.random() < 0.4)


def draw(seed: int, num_requests: int | None = None) -> Knobs:
    """The scenario of a seed."""
    rng = random.Random(f"knobs {seed}")
    roles = rng.choice(ROLES)
    max_prompt, max_output = rng.choice(((100, 30), (40, 60), (160, 12)))
    smallest = -(-(max_prompt + max_output) // 16) + 1
    is_lossy = rng.random() < 0.6
    faults = draw_faults(rng)
    num_requests = num_requests or rng.choice((6, 10, 14))
    pages = tuple(rng.choice((smallest, 2 * smallest, 6 * smallest)) for _ in roles)
    max_num_seqs = rng.choice((1, 4, 16))
    num_rows = sum(
        min(max_num_seqs, num // smallest)
        for num, (_, decode) in zip(pages, roles, strict=True)
        if decode
    )
    step_s = rng.choice((0.01, 0.03, 0.1))
    if num_requests * max_output * step_s / num_rows > MAX_WORK_S:
        step_s = 0.01
    knobs = Knobs(
        seed=seed,
        roles=roles,
        num_gateways=rng.choice((1, 2, 2)),
        num_requests=num_requests,
        safety_s=rng.choice((8.0, 12.0)),
        transport=rng.choice(("shared_memory", "zmq", "mixed")),
        pages=pages,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=rng.choice((16, 40, 128)),
        lookahead_tokens=rng.choice((32, 200)),
        max_prompt=max_prompt,
        max_output=max_output,
        vocab_size=rng.choice((200, 1000)),
        num_families=rng.choice((1, 3, 100)),
        step_s=step_s,
        page_copy_s=rng.choice((0.0005, 0.01, 0.1)),
        tick_s=rng.choice((0.05, 0.1)),
        loss=rng.choice((0.01, 0.05, 0.15)) if is_lossy else 0.0,
        duplication=rng.choice((0.0, 0.02, 0.15)) if is_lossy else 0.0,
        delay_s=rng.choice((0.0005, 0.003, 0.02)),
        is_ordered=rng.random() < 0.4,
        transfer_lease_s=rng.choice((20.0, 20.0, 4.0)),
        faults=faults,
        fault_every_s=rng.choice((0.7, 1.5, 4.0)),
        corruption=rng.choice((0.005, 0.05)) if "corrupt" in faults else 0.0,
        batch_policy=rng.choice(("fifo", "fifo", "fifo", "static")),
        keeps_address=rng.random() < 0.5,
        is_encoded=rng.random() < 0.3,
        # By dice of its own: what was drawn for a seed before stays.
        flips_roles=random.Random(f"roles {seed}").random() < 0.3,
    )
    return overcommitted(knobs, rng) if rng.random() < 0.4 else knobs


def overcommitted(knobs: Knobs, rng: random.Random) -> Knobs:
    """Pages run out, and requests are preempted: as the node must, or as a policy likes."""
    is_rude = knobs.batch_policy == "fifo" and rng.random() < 0.5
    return replace(
        knobs,
        batch_policy="rude" if is_rude else knobs.batch_policy,
        reserve=rng.choice(("full", "predicted", "none", "none")),
        preemption=rng.choice(("auto", "recompute", "swap")),
        num_watermark_pages=rng.choice((0, 1)),
        num_swap_pages=rng.choice((0, 4, 1000)),
    )
