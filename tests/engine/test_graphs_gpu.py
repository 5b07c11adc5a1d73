"""On a CUDA device: replayed graphs draw what the plain runner draws there."""

import pytest
import torch

from tests.engine.resident_world import NUM_PAGES, run_both

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(180)]


@pytest.mark.parametrize("seed", range(3))
def test_any_course_of_steps_gives_the_plain_runners_tokens(seed: int) -> None:
    plain, ours = run_both("gpu", seed, 200, max_rows=20)
    torch.testing.assert_close(
        ours.pool.tensor[:NUM_PAGES], plain.pool.tensor[:NUM_PAGES], rtol=0, atol=1e-3
    )
