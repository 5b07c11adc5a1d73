"""Profiles: published coefficients come out as published; broken files are explained."""

import math

import pytest

from scheduling.costs import StepShape, num_pairs
from simulator.performance.profiles import load_profile, parse_profile, profile_names

OPT13B = load_profile("a100-opt13b")
LLAMA = load_profile("a100-llama3-8b")


@pytest.mark.parametrize("name", profile_names())
def test_shipped_profiles_load_and_say_where_they_are_from(name):
    profile = load_profile(name)
    assert profile.name == name
    assert len(profile.source) > 20
    assert profile.costs.step_s > 0


@pytest.mark.parametrize("length", [1, 100, 2000])
def test_prefill_is_distserves_formula(length):
    shape = StepShape(length, num_pairs(length, 0))
    published_ms = 18.1 + 0.1019 * length + 7.12e-6 * length**2
    assert OPT13B.step_s(shape) * 1e3 == pytest.approx(published_ms)


@pytest.mark.parametrize(
    ("num_rows", "coefficients"),
    [(1, (19.93, 6.27e-4, 0.0385)), (94, (19.93, 6.27e-4, 0.0385)), (95, (7.17, 5.80e-4, 0.158))],
)
def test_decode_has_distserves_two_regimes(num_rows, coefficients):
    base, context, row = coefficients
    shape = StepShape(0, 0.0, num_rows, 40_000)
    assert OPT13B.step_s(shape) * 1e3 == pytest.approx(base + context * 40_000 + row * num_rows)


@pytest.mark.parametrize("num_chunk", [100, 1000])
def test_mixed_steps_are_niyamas_formula(num_chunk):
    num_rows, context, prefix = 20, 30_000, 4000
    n = num_chunk + num_rows
    if n <= 512:
        published = 0.014936 + 5.88e-5 * n + 2.25e-5 * num_chunk + 3.63e-5 * num_rows
        published += 1.11e-7 * context + 7.55e-7 * prefix
    else:
        published = 0.005004 + 2.72e-5 * n + 6.86e-5 * num_chunk - 4.14e-5 * num_rows
        published += 1.66e-7 * context + 2.73e-6 * prefix
    shape = StepShape(num_chunk, num_pairs(num_chunk, prefix), num_rows, context)
    assert math.isclose(LLAMA.step_s(shape, prefix), published, rel_tol=1e-9)


def test_unknown_names_and_broken_files_are_explained(tmp_path):
    with pytest.raises(ValueError) as caught:
        load_profile("b200")
    assert "a100-opt13b" in str(caught.value)
    broken = tmp_path / "broken.toml"
    broken.write_text('name = "x"\nnum_pages = "many"\n')
    with pytest.raises(ValueError) as caught:
        load_profile(str(broken))
    assert "broken.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"regimes": []}, "regimes"),
        ({"num_pages": 0}, "num_pages"),
        ({"max_num_batched_tokens": 1, "max_num_seqs": 2}, "max_num_seqs"),
        ({"stall_probability": 1.5}, "stall_probability"),
        ({"regimes": [{"prefill_base_s": 1, "decode_base_s": 1, "max_tokens": 5}]}, "last"),
        ({"regimes": [{"prefill_base_s": 0, "decode_base_s": 1}]}, "prefill step"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_senseless_values_are_refused(change, word):
    document = {
        "name": "x",
        "source": "y",
        "num_pages": 10,
        "kv_bytes_per_token": 10,
        "regimes": [{"prefill_base_s": 1.0, "decode_base_s": 1.0}],
    }
    with pytest.raises(ValueError) as caught:
        parse_profile(document | change)
    assert word in str(caught.value)
