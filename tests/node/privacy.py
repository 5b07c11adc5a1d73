"""Requests whose every token names its owner, and a pool in which freed pages hold nothing of use.

Every prompt is drawn from tokens that are nobody else's (its canary). Whoever drives them through
two nodes can tell what of whom came out where.
"""

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.ledger import PageLedger, PageState
from tests.node.node_world import World, stream

POISON = 0xDB
COMMON = range(64)  # tokens of the system prompts, which everybody may see
CANARY = 16  # distinct tokens of each owner
TENANTS = ("red", "green", "blue")
VICTIM_EVERY = 20
Answer = Callable[[list[int], int], list[int]]


class PoisoningLedger(PageLedger):
    """Fills every page with poison when it becomes free, or enters another of `states`."""

    def __init__(
        self, pool: NDArray[np.uint8], states: tuple[PageState, ...] = (PageState.FREE,)
    ) -> None:
        super().__init__(len(pool))
        self.num_poisoned = 0
        self._pool = pool
        self._states = states
        pool[:] = POISON

    def _set(self, page: int, state: PageState) -> None:
        super()._set(page, state)
        if state in self._states:
            self._pool[page] = POISON
            self.num_poisoned += 1


@dataclass(frozen=True)
class Ask:
    """One request; `owner` is whose canary it holds, `after` which request must be over before."""

    n: int
    owner: int
    tenant: str
    prompt: list[int]
    max_tokens: int
    expected: list[int]
    after: int | None = None
    is_victim: bool = False

    @property
    def request_id(self) -> bytes:
        return self.n.to_bytes(16, "big")

    @property
    def is_foreign_tenant(self) -> bool:
        """Whether another tenant has asked the very same before."""
        return self.after is not None and self.after == self.n - 2


def canary(owner: int) -> range:
    return range(len(COMMON) + owner * CANARY, len(COMMON) + (owner + 1) * CANARY)


def make_asks(
    count: int,
    answer: Answer,
    *,
    canary_of: Callable[[int], Sequence[int]] = canary,
    max_prompt: int = 110,
    max_new: int = 30,
) -> list[Ask]:
    """Of ten requests, three share a system prompt, one is a second turn, one is another tenant's
    copy of an earlier one; one of twenty will be cancelled while its pages are on their way."""
    rng = random.Random(5)
    asks: list[Ask] = []
    for n in range(1, count + 1):
        tenant, owner, after = TENANTS[n % len(TENANTS)], n, None
        own = canary_of(n)
        shortest = max_prompt // 2 if n % VICTIM_EVERY == 5 else 20
        prompt = [rng.choice(own) for _ in range(rng.randint(shortest, max_prompt))]
        match n % 10:
            case 1 | 2 | 3:
                prompt[:32] = COMMON[:32]
            case 6:
                prompt = prompt[: max_prompt // 2]
            case 7:  # a second turn, which reads what the first one generated
                first = asks[-1]
                tenant, owner, after = first.tenant, first.owner, first.n
                new = [rng.choice(canary_of(owner)) for _ in range(9)]
                prompt = [*first.prompt, *first.expected, *new]
            case 8:
                owner, after, prompt = asks[-2].owner, asks[-2].n, asks[-2].prompt
        max_tokens = rng.randint(2, max_new)
        expected = answer(prompt, max_tokens)
        is_victim = n % VICTIM_EVERY == 5
        asks.append(Ask(n, owner, tenant, prompt, max_tokens, expected, after, is_victim))
    return asks


def drive(world: World, asks: list[Ask], num_in_flight: int = 6) -> set[bytes]:
    """All through both nodes, until nothing is left; returns who was cancelled mid-transfer."""
    victims = {ask.request_id for ask in asks if ask.is_victim}
    waiting, live, cancelled = deque(asks), set[bytes](), set[bytes]()
    while waiting or live:
        while waiting and len(live) < num_in_flight:
            ask = waiting[0]
            if ask.after is not None and ask.after.to_bytes(16, "big") in live:
                break
            waiting.popleft()
            live.add(ask.request_id)
            world.submit(ask.n, 0, ask.max_tokens, prompt_ids=ask.prompt, tenant=ask.tenant)
        world.turn()
        assert not world.refusals, world.refusals
        for _, job in world.copies:
            request_id = job.key[0]
            if request_id in victims - cancelled:
                world.cancel(request_id)
                cancelled.add(request_id)
        live -= cancelled
        live -= set(world.endings)
    world.run()
    return cancelled


def foreign_canaries(world: World, asks: list[Ask]) -> Iterator[str]:
    """Tokens in answers that only another's prompt holds."""
    for ask in asks:
        known = world.tokens.get(ask.request_id, {})
        if foreign := set(known.values()).difference(COMMON, canary(ask.owner)):
            yield f"{ask.n}: {sorted(foreign)}"


def problems(world: World, asks: list[Ask], cancelled: set[bytes]) -> Iterator[str]:
    """Answers that are not those of a process of one's own."""
    for ask in asks:
        if ask.request_id in cancelled:
            known = world.tokens.get(ask.request_id, {})
            if any(ask.expected[index] != token for index, token in known.items()):
                yield f"{ask.n}: a wrong token before it was cancelled"
        elif world.endings[ask.request_id] != "length":
            yield f"{ask.n}: {world.reasons[ask.request_id]}"
        elif stream(world, ask.request_id) != ask.expected:
            yield f"{ask.n}: wrong tokens"


def num_cached(world: World, ask: Ask) -> tuple[int, int]:
    """Tokens of its prompt that were found in caches: at the prefill node, at the decode node."""
    prefill = world.prefill_reports[ask.request_id]
    return prefill.num_cached_tokens, world.decode_reports[ask.request_id].num_cached_tokens


def cache_hits(world: World, asks: list[Ask], cancelled: set[bytes]) -> Counter[str]:
    """How many second turns found pages, and how many copies by another tenant did."""
    hits: Counter[str] = Counter()
    for ask in asks:
        if ask.after is not None and ask.request_id not in cancelled:
            name = "other tenant" if ask.is_foreign_tenant else "same tenant"
            hits[name] += sum(num_cached(world, ask)) > 0
            hits[f"{name}, asked"] += 1
    return hits
