"""The nodes as the placement policy sees them: what was placed, what is held, what is cached.

As `coordinator.candidates`, with loads that are never stale. With `limit`, a policy is offered only
the nodes that a policy of load and prefixes could want: for each role those with the least load and
those with the longest cached prefixes. With a thousand nodes that is the difference between minutes
and hours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scheduling.routing.estimates import with_times
from scheduling.routing.placement import Candidate
from simulator.performance.node import SimNode
from simulator.performance.requests import Resident, SimRequest


@dataclass(slots=True)
class Loads:
    """What is on each node, by its number."""

    prompt_tokens: NDArray[np.int64]  # placed and not yet computed
    sequences: NDArray[np.int64]  # to decode there, placed and not over
    pages: NDArray[np.int64]  # that these may come to need
    tokens: NDArray[np.int64]  # of their contexts, half way through the longest answers
    prompts: NDArray[np.int64]  # not yet computed
    placed: NDArray[np.int64]  # ever

    @classmethod
    def none(cls, num_nodes: int) -> "Loads":
        """Idle nodes."""
        return cls(*(np.zeros(num_nodes, dtype=np.int64) for _ in range(6)))


class BlockHolders:
    """Which nodes have which block cached."""

    def __init__(self) -> None:
        self._holders: dict[int, set[int]] = {}

    def listener(self, node: int) -> Callable[[int, bool], None]:
        """What the pages of a node tell when a block enters or leaves."""

        def changed(block: int, is_here: bool) -> None:
            holders = self._holders.setdefault(block, set())
            if is_here:
                holders.add(node)
            else:
                holders.discard(node)
                if not holders:
                    del self._holders[block]

        return changed

    def matches(self, blocks: Sequence[int]) -> dict[int, int]:
        """Leading blocks that each node has, for nodes that have any."""
        found: dict[int, int] = {}
        here: set[int] | None = None
        for number, block in enumerate(blocks):
            holders = self._holders.get(block, set())
            left = holders if here is None else here & holders
            if here is not None and len(left) < len(here):
                found.update(dict.fromkeys(here - left, number))
            here = left
            if not here:
                return found
        if here:
            found.update(dict.fromkeys(here, len(blocks)))
        return found


class CandidatePool:
    """Snapshots of all nodes."""

    def __init__(
        self,
        nodes: Sequence[SimNode],
        loads: Loads,
        holders: BlockHolders,
        limit: int | None = None,
    ) -> None:
        self._nodes = nodes
        self._loads = loads
        self._holders = holders
        self._limit = limit
        self._costs = nodes[0].services.costs
        self._index = {node.name: node.index for node in nodes}
        self._snapshots: list[Candidate | None] = [None for _ in nodes]
        # Roles in which requests are placed on each node: shares of it.
        self._shares = [_shares(_weights(node)) for node in nodes]
        # Many prompts share just the first block, so the last match is often the next one.
        self._hits = [(each, each) for each in map(self._snapshot, range(len(nodes)))]
        names = sorted(self._index)
        self._rank = np.array([names.index(node.name) for node in nodes]) * 1e-9
        self._slots = np.array([node.settings.max_num_seqs for node in nodes])
        self._room = np.array([node.pages.num_pages for node in nodes])
        self._prefills, self._decodes = self._by_role()

    def index(self, name: str) -> int:
        """Number of the node of this name."""
        return self._index[name]

    def close(self, node: int, weights: tuple[float, float]) -> None:
        """Roles that the node is ordered to lose take nothing from now on; new ones not yet."""
        now = self._shares[node]
        left = (now[0] if weights[0] > 0 else 0.0, now[1] if weights[1] > 0 else 0.0)
        self._set(node, left)

    def open(self, node: int) -> None:
        """It has obeyed."""
        self._set(node, _shares(_weights(self._nodes[node])))

    def _set(self, node: int, shares: tuple[float, float]) -> None:
        self._shares[node] = shares
        self._snapshots[node] = None
        self._prefills, self._decodes = self._by_role()

    def _by_role(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        shares = np.array(self._shares)
        return np.flatnonzero(shares[:, 0] > 0), np.flatnonzero(shares[:, 1] > 0)

    def placed(self, resident: Resident, prefill: int, decode: int) -> None:
        """A request was placed."""
        loads = self._loads
        loads.prompt_tokens[prefill] += resident.num_todo
        loads.placed[prefill] += 1
        loads.placed[decode] += decode != prefill
        loads.prompts[prefill] += 1
        loads.sequences[decode] += 1
        loads.pages[decode] += resident.num_placed_pages
        loads.tokens[decode] += resident.request.num_mean_tokens

    def ended(self, resident: Resident, decode: int) -> None:
        """A request is over."""
        self._loads.sequences[decode] -= 1
        self._loads.pages[decode] -= resident.num_placed_pages
        self._loads.tokens[decode] -= resident.request.num_mean_tokens

    def candidates(self, request: SimRequest) -> list[Candidate]:
        """What the policy is offered for this request."""
        matches = self._holders.matches(request.blocks)
        if self._limit is None or self._limit >= len(self._nodes):
            return [self._with_match(i, matches.get(i, 0)) for i in range(len(self._nodes))]
        return [self._with_match(i, matches.get(i, 0)) for i in self._best(matches)]

    def _with_match(self, node: int, num_blocks: int) -> Candidate:
        snapshot = self._snapshot(node)
        if not num_blocks:
            return snapshot
        num_pages = num_blocks * self._nodes[node].pages.block_pages
        base, hit = self._hits[node]
        if base is not snapshot or hit.num_cached_pages != num_pages:
            hit = replace(snapshot, num_cached_pages=num_pages)
            self._hits[node] = (snapshot, hit)
        return hit

    def _best(self, matches: dict[int, int]) -> list[int]:
        """By tokens or fullness, then placements, then names: as `pick_lowest` breaks ties."""
        assert self._limit is not None
        count = max(1, self._limit // 4)
        loads = self._loads
        ties = loads.placed * 1e-5 + self._rank
        full = np.maximum(loads.sequences / self._slots, loads.pages / self._room)
        depth = np.zeros(len(self._nodes))
        if matches:
            depth[list(matches)] = list(matches.values())
        chosen: set[int] = set()
        for nodes, load in (
            (self._prefills, loads.prompt_tokens + ties),
            (self._decodes, full + ties * 1e-6),
        ):
            chosen.update(_lowest(nodes, load, count))
            if matches:
                chosen.update(_lowest(nodes, load * 1e-9 - depth, count))
        return sorted(chosen)

    def _snapshot(self, index: int) -> Candidate:
        node, loads, known = self._nodes[index], self._loads, self._snapshots[index]
        pages = node.pages
        num_tokens = int(loads.prompt_tokens[index])
        num_sequences = int(loads.sequences[index])
        num_held = max(int(loads.pages[index]), pages.num_held + pages.num_promised)
        num_placed = int(loads.placed[index])
        if (
            known is not None
            and known.num_prefill_tokens == num_tokens
            and known.num_sequences == num_sequences
            and known.num_pages_held == num_held
            and known.num_placed == num_placed
        ):
            return known
        settings = node.settings
        made = Candidate(
            node_id=node.name,
            prefill_weight=self._shares[index][0],
            decode_weight=self._shares[index][1],
            draining=False,
            num_pages=pages.num_pages,
            page_size=settings.profile.page_size,
            max_num_seqs=settings.max_num_seqs,
            num_prefill_tokens=num_tokens,
            num_sequences=num_sequences,
            num_pages_held=num_held,
            num_placed=num_placed,
            num_prompts=int(loads.prompts[index]),
            num_decode_tokens=int(loads.tokens[index]),
            max_num_batched_tokens=settings.max_num_batched_tokens,
            page_bytes=settings.profile.page_bytes,
            tightest_tpot_s=settings.tpot_s if num_sequences else math.inf,
            costs=self._costs,
        )
        made = with_times(made)
        self._snapshots[index] = made
        return made


def _weights(node: SimNode) -> tuple[float, float]:
    return node.settings.prefill_weight, node.settings.decode_weight


def _shares(weights: tuple[float, float]) -> tuple[float, float]:
    share = 1.0 / sum(weights)
    return weights[0] * share, weights[1] * share


def _lowest(nodes: NDArray[np.int64], load: NDArray[np.float64], count: int) -> list[int]:
    """Up to `count` of `nodes` with the least load."""
    if len(nodes) <= count:
        return list(map(int, nodes))
    return list(map(int, nodes[np.argpartition(load[nodes], count)[:count]]))
