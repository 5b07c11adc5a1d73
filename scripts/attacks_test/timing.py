"""Can a tenant tell by the clock which prompts another one has sent?

Bob asks for prompts that Alice has sent (cached, for her) and for prompts that nobody has, in
random order. A two-sample Kolmogorov-Smirnov test compares his times to the first byte. That it
would see a difference is shown by Alice, who asks for her own prompts again.
"""

import math
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import numpy as np

from scripts.attacks_test.outcome import Outcome
from tandem.bearer import add_key
from tandem.launch import LocalCluster

MODEL, VOCAB_SIZE = "models/demo", 4096
TENANTS = """
[tenants.red]
clients = ["alice"]
[tenants.blue]
clients = ["bob"]
"""
NUM_SAMPLES, NUM_QUICK = 500, 20
NUM_PROMPT = 320  # cached or not makes some 10 ms of difference
LEAST_P = 0.01


async def attack(quick: bool) -> Outcome:
    """500 samples of each kind."""
    outcome = Outcome()
    num = NUM_QUICK if quick else NUM_SAMPLES
    with tempfile.TemporaryDirectory(prefix="tandem-") as folder:
        tenants = Path(folder) / "tenants.toml"
        tenants.write_text(TENANTS)
        with LocalCluster(
            model=MODEL,
            secure=True,
            node_args=("--num-pages", "30000"),
            gateway_args=("--tenants", str(tenants)),
        ) as cluster:
            assert cluster.keys is not None
            seconds = await _measure(cluster, cluster.keys, num)
    p_attack = ks_p_value(seconds["alice's, by bob"], seconds["unknown, by bob"])
    p_control = ks_p_value(seconds["alice's, by alice"], seconds["unknown, by bob"])
    for name, values in seconds.items():
        outcome.note(f"first byte, {name}", f"median {np.median(values) * 1e3:.2f} ms")
    outcome.note("samples of each", str(num))
    outcome.note("p, another tenant's prompts against unknown ones", f"{p_attack:.3f}")
    outcome.note("p, one's own prompts against unknown ones", f"{p_control:.2g}")
    outcome.expect(p_attack > LEAST_P, "another tenant's prompts can be told by their time")
    outcome.expect(p_control < LEAST_P, "the test would not see a cached prompt: it shows nothing")
    return outcome


async def _measure(cluster: LocalCluster, keys: Path, num: int) -> dict[str, list[float]]:
    callers = {name: add_key(keys, name, "client") for name in ("alice", "bob")}
    rng = np.random.default_rng(7)
    prompts = {
        kind: [rng.integers(3, VOCAB_SIZE, NUM_PROMPT).tolist() for _ in range(num)]
        for kind in ("alice's", "unknown")
    }
    seconds: dict[str, list[float]] = {
        name: [] for name in ("alice's, by bob", "unknown, by bob", "alice's, by alice")
    }
    order = [(kind, index) for kind in prompts for index in range(num)]
    random.Random(7).shuffle(order)
    async with aiohttp.ClientSession(cluster.http_address) as session:
        for prompt in prompts["alice's"]:
            await _first_byte_s(session, callers["alice"], prompt)
        for kind, index in order:
            taken = await _first_byte_s(session, callers["bob"], prompts[kind][index])
            seconds[f"{kind}, by bob"].append(taken)
        for prompt in prompts["alice's"]:
            taken = await _first_byte_s(session, callers["alice"], prompt)
            seconds["alice's, by alice"].append(taken)
    return seconds


async def _first_byte_s(session: aiohttp.ClientSession, key: str, prompt: Sequence[int]) -> float:
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0.0, "stream": True}
    headers = {"Authorization": f"Bearer {key}"}
    began = time.perf_counter()
    async with session.post("/v1/completions", json=body, headers=headers) as answer:
        answer.raise_for_status()
        await answer.content.readany()
        taken = time.perf_counter() - began
        await answer.read()
    return taken


def ks_p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """Of the two-sample Kolmogorov-Smirnov test, by the limit of its law."""
    a, b = np.sort(first), np.sort(second)
    both = np.concatenate((a, b))
    distance = np.abs(
        np.searchsorted(a, both, side="right") / len(a)
        - np.searchsorted(b, both, side="right") / len(b)
    ).max()
    x = math.sqrt(len(a) * len(b) / (len(a) + len(b))) * float(distance)
    if x < 0.2:  # the series below converges slowly there, and its sum is 1
        return 1.0
    terms = (math.copysign(math.exp(-2 * (k * x) ** 2), k % 2 - 0.5) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * sum(terms)))
