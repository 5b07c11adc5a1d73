"""Prefill policies by name: names, options, and what is said where they are wrong."""

import pytest

from scheduling.batch.options import split_options
from scheduling.prefill.catalogue import PREFILL_POLICIES, make_prefill_policy
from scheduling.prefill.guard import WaitGuard
from scheduling.prefill.shared_prefix import SharedPrefixFirst


def test_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(ValueError, match=r"edf.*fifo.*niyama"):
        make_prefill_policy("fastest")


@pytest.mark.parametrize("name", sorted(PREFILL_POLICIES))
def test_every_entry_builds_and_says_what_it_is(name: str) -> None:
    make_prefill_policy(name)
    assert PREFILL_POLICIES[name].summary


def test_options_put_wrappers_around_any_policy() -> None:
    assert isinstance(make_prefill_policy("spf", {"guard_ms": "100"}), WaitGuard)
    both = make_prefill_policy("spf", {"guard_ms": "100", "shared_prefix_ms": "100"})
    assert isinstance(both, SharedPrefixFirst)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"gaurd_ms": "1"}, "did you mean guard_ms"),
        ({"guard_ms": "soon"}, "prefill option guard_ms=soon must be a number"),
        ({"guard_ms": "-1"}, "prefill option guard_ms must be above 0"),
        ({"guard_every": "0"}, "guard_every must be at least 1"),
        ({"length_weight_ms": "-1"}, "length_weight_ms must not be negative"),
        ({"no_target_ms": "nan"}, "no_target_ms=nan must be a number"),
    ],
)
def test_wrong_options_are_explained(options: dict[str, str], advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        make_prefill_policy("niyama", options)


def test_texts_that_are_no_options_say_whose_they_are() -> None:
    with pytest.raises(ValueError, match="prefill option 'x' is not KEY=VALUE"):
        split_options(["x"], "prefill")
