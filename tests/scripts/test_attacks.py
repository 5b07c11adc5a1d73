"""The test of two samples by which `scripts/test_attacks` judges: it must be able to fail."""

import numpy as np
import pytest

from scripts.attacks_test.timing import ks_p_value


def test_the_law_has_its_tabulated_quantiles() -> None:
    """Of Kolmogorov's law: 5 % beyond 1.358, 1 % beyond 1.628."""
    size = 100_000

    def p_at(x: float) -> float:
        shift = round(x * np.sqrt(2 / size) * size)  # distance of two uniform grids
        return ks_p_value(np.arange(size), np.arange(size) + shift)

    assert p_at(1.358) == pytest.approx(0.05, rel=0.02)
    assert p_at(1.628) == pytest.approx(0.01, rel=0.02)
    assert p_at(0.0) == 1.0


def test_it_is_right_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    same = [ks_p_value(rng.normal(size=200), rng.normal(size=200)) for _ in range(300)]
    other = [ks_p_value(rng.normal(size=200), rng.normal(0.5, size=200)) for _ in range(50)]
    assert np.mean(np.array(same) < 0.05) < 0.09
    assert np.mean(np.array(other) < 0.01) > 0.9
