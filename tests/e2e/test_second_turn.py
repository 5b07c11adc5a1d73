"""A conversation's second turn on real nodes: the same tokens, and only what is new is shipped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tandem.sampling import SamplingParams

NUM_NEW = 90
PARAMS = SamplingParams(temperature=0.0, max_tokens=NUM_NEW, ignore_eos=True)
PAGE = 16


@pytest.mark.timeout(120)
@pytest.mark.parametrize("transport", ["shared_memory", "zmq"])
def test_a_second_turn_ships_only_its_new_pages_and_says_the_same(
    deployer: Callable[..., Any],
    demo_model: Path,
    prompts: list[list[int]],
    alone: Callable[..., list[int]],
    runner_of: Callable[..., Any],
    transport: str,
) -> None:
    prompt = max(prompts, key=len)
    with deployer(demo_model, node_args=["--transport", transport]) as deployment:
        (first,) = deployment.client.generate([prompt], params=PARAMS, progress=False)
        longer = [*prompt, *first.token_ids, *prompts[0][:20]]
        (second,) = deployment.client.generate([longer], params=PARAMS, progress=False)
    runner = runner_of(demo_model)
    assert list(first.token_ids) == alone(runner, prompt, PARAMS, ())
    assert list(second.token_ids) == alone(runner, longer, PARAMS, ())
    page_bytes = first.timeline.transfer_bytes // -(-len(prompt) // PAGE)
    # The KV of the last token of an answer is never computed.
    num_kept = (len(prompt) + NUM_NEW - 1) // PAGE
    num_pages = -(-len(longer) // PAGE)
    assert second.timeline.transfer_bytes == (num_pages - num_kept) * page_bytes
    assert second.usage.num_cached_tokens == num_kept * PAGE  # the answer was read, not recomputed
