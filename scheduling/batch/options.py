"""Options of a policy, given as text: one frozen dataclass per policy says what there is. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

from tandem.config import ConfigField, DataclassLike, fields_of

O = TypeVar("O", bound=DataclassLike)  # noqa: E741  options


@dataclass(frozen=True, slots=True)
class NoOptions:
    """For a policy that has none of its own."""


def split_options(pairs: Sequence[str], role: str = "batch") -> dict[str, str]:
    """`KEY=VALUE` texts as a mapping. Raises ValueError for other texts and repeated keys."""
    options: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise ValueError(f"{role} option {pair!r} is not KEY=VALUE, as in guard_ms=3000")
        if key in options:
            raise ValueError(f"{role} option {key!r} is given twice: give it once")
        options[key] = value.strip()
    return options


def option_fields(*kinds: type[DataclassLike]) -> dict[str, ConfigField]:
    """The fields of these option classes by name."""
    return {field.name: field for kind in kinds for field in fields_of(kind)}


def check_names(given: Mapping[str, str], known: Mapping[str, ConfigField], owner: str) -> None:
    """Raises ValueError for an option that nobody has, listing those on offer."""
    for key in given:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(
                f"{owner} has no option {key!r}: {hint}known are {', '.join(sorted(known))}"
            )


def parse_options(kind: type[O], given: Mapping[str, str], role: str = "batch") -> O:
    """These options, the defaults where not given; keys of other classes are passed over.

    Raises ValueError with what the value should be.
    """
    values = {
        field.name: _convert(field, given[field.name], role)
        for field in fields_of(kind)
        if field.name in given
    }
    return kind(**values)


def _convert(field: ConfigField, text: str, role: str) -> Any:  # noqa: ANN401
    if field.is_optional and text.lower() == "none":
        return None
    try:
        value = msgspec.convert(text, field.kind, strict=False)
    except msgspec.ValidationError:
        value = math.nan
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"{role} option {field.name}={text} must be {_expected(field)}: {field.text}"
        )
    return value


def _expected(field: ConfigField) -> str:
    if get_origin(field.base) is Literal:
        return "one of " + ", ".join(str(value) for value in get_args(field.base))
    words = {int: "a whole number", float: "a number", bool: "true or false"}
    return words.get(field.base, "text") + (", or none" if field.is_optional else "")


def require(is_fine: bool, advice: str, role: str = "batch") -> None:
    """Raises ValueError with this advice where an option's value makes no sense."""
    if not is_fine:
        raise ValueError(f"{role} option {advice}")
