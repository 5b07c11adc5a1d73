"""A resolved config as text: `--dump-config` prints it, `--config` reads it back. Pure."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Setting:
    """A field's value and who gave it: a flag, a variable, a table of a file, `default`."""

    name: str
    value: Any
    source: str


def dump(settings: Sequence[Setting], *, section: str, title: str) -> str:
    """The table `[section]`, each value with its source; what is unset is a comment."""
    return "\n".join([f"# {title}", f"[{section}]", *_lines(settings)])


def _lines(settings: Sequence[Setting]) -> Iterator[str]:
    for setting in settings:
        if setting.value is None:
            yield f"# {setting.name} is not set  # {setting.source}"
        else:
            yield f"{setting.name} = {_toml(setting.value)}  # {setting.source}"


def _toml(value: object) -> str:
    """Texts, numbers, booleans and lists of texts."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the one control character that JSON leaves alone.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
