"""Long busy stories of two whole nodes whose requests share prefixes, in pools that are too small.

Messages are lost, repeated and reordered, copies and reads are slow and sometimes corrupted,
requests are cancelled at any time. Every copy and both ledgers are audited in every turn; every
token that a gateway ever gets must be the one that its whole history calls for.
"""

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.node.node_world import World, prompt, tokens_after

NUM_SEEDS = 12


class Storm:
    """One world, some conversations, and the dice."""

    def __init__(self, seed: int, *, is_mapped: bool) -> None:
        self.dice = Random(seed)
        self.world = World(
            loss=self.dice.choice([0.0, 0.15, 0.3]),
            prefill_pages=self.dice.choice([12, 16, 24]),
            decode_pages=self.dice.choice([12, 16, 24]),
            copy_chance=self.dice.choice([0.2, 0.6, 1.0]),
            seed=seed,
            is_mapped=is_mapped,
        )
        self.prompts: dict[bytes, tuple[list[int], int]] = {}
        self.cancelled: set[bytes] = set()
        self.talks = [prompt(n, 40) for n in range(3)]
        self.seen: Counter[str] = Counter()

    def run(self, num_turns: int) -> None:
        for _ in range(num_turns):
            if len(self.prompts) < 60 and self.dice.random() < 0.12:
                self.submit()
            if self.prompts and self.dice.random() < 0.02:
                self.cancel()
            self.world.verify_error = "told so" if self.dice.random() < 0.03 else None
            self.world.reads_fail = self.dice.random() < 0.05
            self.world.turn()
            self.end_failed()
            self.note()
        self.world.verify_error = None
        self.world.copy_chance = 1.0
        self.world.run(8000, each_turn=self.end_failed)
        self.world.assert_no_leak()
        self.check_tokens()

    def submit(self) -> None:
        n = len(self.prompts) + 1
        talk = self.dice.randrange(len(self.talks))
        length = self.dice.randint(1, len(self.talks[talk]))
        prompt_ids = self.talks[talk][:length]
        max_tokens = self.dice.randint(1, 30)
        request_id = self.world.submit(n, 0, max_tokens, prompt_ids=prompt_ids)
        self.prompts[request_id] = (prompt_ids, max_tokens)
        # The next turn of the talk goes on from this one's answer, known in advance.
        answer = list(tokens_after(prompt_ids, max_tokens))
        if len(prompt_ids) + max_tokens < 120:
            self.talks[talk] = [*prompt_ids, *answer, *prompt(n, 5)]

    def cancel(self) -> None:
        request_id = self.dice.choice(list(self.prompts))
        self.cancelled.add(request_id)
        self.world.cancel(request_id)

    def end_failed(self) -> None:
        """A gateway cancels an attempt that failed on one node at the other."""
        for request_id, reason in self.world.endings.items():
            if reason == "failed" and request_id not in self.cancelled:
                self.cancelled.add(request_id)
                self.world.cancel(request_id)

    def note(self) -> None:
        for phase in self.world.d.decode._transfers.live().values():
            self.seen[phase.value] += 1
        self.seen["reading"] += any(hasattr(job, "own_pages") for _, job in self.world.copies)

    def check_tokens(self) -> None:
        for request_id, (prompt_ids, max_tokens) in self.prompts.items():
            whole = list(tokens_after(prompt_ids, max_tokens))
            got = self.world.tokens.get(request_id, {})
            assert all(whole[index] == token for index, token in got.items())
            if self.world.endings.get(request_id) == "length":
                assert len(got) == max_tokens
                self.seen["whole"] += 1
            else:
                assert request_id in self.cancelled
        reused = [r.num_cached_tokens for r in self.world.decode_reports.values()]
        self.seen["reused"] += sum(n > 0 for n in reused)
        self.seen["read"] += self.world.num_read


@pytest.mark.parametrize("is_mapped", [True, False])
def test_storms_end_exact_and_with_every_page_free(is_mapped: bool) -> None:
    seen: Counter[str] = Counter()
    for seed in range(NUM_SEEDS):
        storm = Storm(seed, is_mapped=is_mapped)
        storm.run(400)
        seen += storm.seen
    for what in ("queued", "open", "verifying", "draining", "reading", "reused", "read"):
        assert seen[what] > 20, seen
    assert seen["whole"] > 10 * NUM_SEEDS, seen


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(100, 2**31), is_mapped=st.booleans())
def test_short_storms_of_any_seed(seed: int, is_mapped: bool) -> None:
    Storm(seed, is_mapped=is_mapped).run(80)


def test_the_storm_would_notice_a_wrong_page() -> None:
    """The check itself must be able to fail."""
    storm = Storm(1, is_mapped=True)
    world = storm.world
    world.loss, world.copy_chance = 0.0, 1.0
    prompt_ids = prompt(1, 40)
    request_id = world.submit(1, 0, 30, prompt_ids=prompt_ids)
    storm.prompts[request_id] = (prompt_ids, 30)
    world.run_until(lambda: world.d.core.load(0).num_decode_running)
    (page, *_) = world.d.decode._entries[(request_id, 1)].resident.pages
    world.d.pool[page, :4] += 1
    world.run()
    with pytest.raises(AssertionError):
        storm.check_tokens()
