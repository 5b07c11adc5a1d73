"""Parsing and resolving of SLA classes."""

import pytest

from scheduling.sla import DEFAULT_CLASSES, is_attained, parse_sla_table


def test_the_default_classes_parse() -> None:
    table = parse_sla_table(DEFAULT_CLASSES, "standard")
    assert table.resolve("interactive", None, None).ttft_ms == 500
    assert table.classes["batch"].attainment == 0.9


@pytest.mark.parametrize(
    ("entries", "default", "advice"),
    [
        (("a:1:2",), "a", "name:ttft_ms:tpot_ms:attainment"),
        (("a:x:2:0.5",), "a", "name:ttft_ms:tpot_ms:attainment"),
        (("a:1:2:1.5",), "a", "at most 1"),
        (("a:nan:2:0.5",), "a", "above 0 ms"),
        (("a:1:2:0.5", "a:1:2:0.5"), "a", "twice"),
        (("a:1:2:0.5",), "b", "none of a"),
    ],
)
def test_a_bad_entry_is_explained(entries, default, advice) -> None:
    with pytest.raises(ValueError) as caught:
        parse_sla_table(entries, default)
    assert advice in str(caught.value)


def test_attainment_is_joint() -> None:
    targets = parse_sla_table(DEFAULT_CLASSES, "standard").resolve("interactive", None, None)
    assert is_attained(targets, 0.5, 0.05)
    assert is_attained(targets, 0.5, None)
    assert not is_attained(targets, 0.51, 0.01)
    assert not is_attained(targets, 0.1, 0.06)
