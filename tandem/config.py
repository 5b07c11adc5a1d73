"""One definition per process: a frozen dataclass whose fields become flags, variables, file keys.

A field is written `num_pages: Annotated[int, Help("KV pages of the pool")] = 512`; one without a
default is required. `--num-pages`, `TANDEM_NUM_PAGES` and `num_pages` in a TOML file (the process's
table first, then `[common]`) follow from it; the first of these that is given wins. Types: str,
int, float, bool, Literal, tuple[str, ...] and any of these or None. `--dump-config` prints what
came of it, `--check` what keeps the process from starting.
"""

import argparse
import dataclasses
import math
import os
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar, Union

import msgspec

from tandem import config_file
from tandem.checks import Check, render_checks
from tandem.config_file import Setting
from tandem.foreign_flags import translate

ENV_PREFIX = "TANDEM_"
COMMON_TABLE = "common"
CONFIG_FLAG = "--config"
CONFIG_VARIABLE = ENV_PREFIX + "CONFIG"


class DataclassLike(Protocol):
    """What `dataclasses.fields` accepts."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


C = TypeVar("C", bound=DataclassLike)


@dataclass(frozen=True, slots=True)
class Help:
    """What a field means, for `--help`."""

    text: str


@dataclass(frozen=True, slots=True)
class ConfigField:
    """A field and the names under which its value may be given."""

    name: str
    kind: Any  # a type expression
    text: str
    default: Any  # dataclasses.MISSING where the field is required

    @property
    def flag(self) -> str:
        """`--num-pages`."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """`TANDEM_NUM_PAGES`."""
        return ENV_PREFIX + self.name.upper()

    @property
    def base(self) -> Any:  # noqa: ANN401  a type expression
        """The type without `| None`."""
        members = [m for m in typing.get_args(self.kind) if m is not types.NoneType]
        return members[0] if self.is_optional else self.kind

    @property
    def is_optional(self) -> bool:
        """Whether None is a value."""
        is_union = typing.get_origin(self.kind) in (Union, types.UnionType)
        return is_union and types.NoneType in typing.get_args(self.kind)

    @property
    def is_list(self) -> bool:
        """Whether the value is a tuple of texts."""
        return typing.get_origin(self.base) is tuple


def fields_of(config_class: type[DataclassLike]) -> tuple[ConfigField, ...]:
    """The fields of a config class. Raises TypeError for one without `Help`."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    found = []
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        if typing.get_origin(hint) is not Annotated or not isinstance(hint.__metadata__[0], Help):
            raise TypeError(f"{config_class.__name__}.{field.name} has no Help")
        found.append(
            ConfigField(
                name=field.name,
                kind=hint.__origin__,
                text=hint.__metadata__[0].text,
                default=field.default,
            )
        )
    return tuple(found)


def load_config(
    config_class: type[C],
    argv: Sequence[str],
    *,
    prog: str,
    section: str,
    env: Mapping[str, str] = os.environ,
    check: Callable[[C], Sequence[Check]] = lambda config: (),
) -> C:
    """The config of this process: flag, else variable, else file, else default.

    `section` is the process's table in the file; `check` is what `--check` runs. Exits with status
    2 and one clear line where a value is missing or wrong, with status 0 after `--help` and
    `--dump-config`, with 0 or 1 after `--check`.
    """
    fields = fields_of(config_class)
    parser = make_parser(config_class, fields, prog=prog, section=section)
    try:
        argv = translate(argv, [field.flag for field in fields])
        flags = vars(parser.parse_args(argv))
        is_dump, is_check = flags.pop("dump_config", False), flags.pop("check", False)
        path = flags.pop("config", None) or env.get(CONFIG_VARIABLE)
        tables = _read_tables(Path(path), section, fields) if path else []
        settings = list(_resolve(fields, flags, env, tables))
        config = config_class(**{setting.name: setting.value for setting in settings})
    except ValueError as error:
        parser.error(str(error))
    if is_dump:
        text = config_file.dump(settings, section=section, title=f"{prog}, resolved")
        sys.stdout.write(f"{text}\n")
        parser.exit(0)
    if is_check:
        checks = check(config)
        sys.stdout.write(f"{render_checks(checks)}\n")
        parser.exit(1 if any(done.status == "fail" for done in checks) else 0)
    return config


def make_parser(
    config_class: type[DataclassLike],
    fields: Sequence[ConfigField],
    *,
    prog: str,
    section: str,
) -> argparse.ArgumentParser:
    """A parser whose namespace holds only the flags that were given, as text (bools as bools)."""
    summary = (config_class.__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [flags]",
        description=summary,
        epilog=f"Each flag has an environment variable, and a key of the same name in the file's "
        f"tables [{section}] and [{COMMON_TABLE}]. Flags win over variables, variables over the "
        f"file. 'none' unsets an optional value. Names that vLLM's users know: docs/cli.md.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        CONFIG_FLAG, metavar="FILE", help=f"TOML file with these settings [{CONFIG_VARIABLE}]"
    )
    parser.add_argument(
        "--check", action="store_true", help="say whether it could start, and do not start it"
    )
    parser.add_argument(
        "--dump-config",
        action="store_true",
        help="print all settings and where each comes from, as a file for --config",
    )
    for field in fields:
        _add_flag(parser, field)
    return parser


def _add_flag(parser: argparse.ArgumentParser, field: ConfigField) -> None:
    text = f"{field.text} [{field.variable}; {_describe_default(field)}]".replace("%", "%%")
    if field.base is bool:
        parser.add_argument(field.flag, action=argparse.BooleanOptionalAction, help=text)
    elif field.is_list:
        parser.add_argument(field.flag, action="append", metavar="TEXT", help=f"{text} (repeat)")
    else:
        parser.add_argument(field.flag, metavar=_metavar(field), help=text)


def _describe_default(field: ConfigField) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if isinstance(field.default, tuple):
        return f"default {','.join(field.default) or 'none'}"
    if isinstance(field.default, bool):
        return f"default {str(field.default).lower()}"
    return f"default {'none' if field.default is None else field.default}"


def _metavar(field: ConfigField) -> str:
    if typing.get_origin(field.base) is Literal:
        return "{" + ",".join(str(value) for value in typing.get_args(field.base)) + "}"
    return {int: "N", float: "X"}.get(field.base, "TEXT")


def _read_tables(
    path: Path, section: str, fields: Sequence[ConfigField]
) -> list[tuple[str, dict[str, Any]]]:
    """The process's table and `[common]`, each with its name for error messages.

    `[common]` may hold keys that only other processes know; the process's own table may not.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the config file {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no TOML file: {error}") from None
    for key, table in document.items():
        if not isinstance(table, dict):
            raise ValueError(
                f"{path}: key {key!r} is in no table: write it under [{section}] or "
                f"[{COMMON_TABLE}]"
            )
    own = document.get(section, {})
    names = [field.name for field in fields]
    for key in own:
        if key not in names:
            close = get_close_matches(key, names, n=1)
            advice = f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}"
            raise ValueError(f"{path}: [{section}] has the unknown key {key!r}: {advice}")
    common = document.get(COMMON_TABLE, {})
    return [(f"{path}: [{section}]", own), (f"{path}: [{COMMON_TABLE}]", common)]


def _resolve(
    fields: Sequence[ConfigField],
    flags: Mapping[str, Any],
    env: Mapping[str, str],
    tables: Sequence[tuple[str, Mapping[str, Any]]],
) -> Iterator[Setting]:
    """Each field's value and its source. Raises ValueError for a bad or missing one."""
    for field in fields:
        table = next((entry for entry in tables if field.name in entry[1]), None)
        if field.name in flags:
            given, source, is_text = flags[field.name], field.flag, True
        elif env.get(field.variable):
            given, source, is_text = env[field.variable], field.variable, True
        elif table is not None:
            given, source, is_text = table[1][field.name], f"{table[0]} {field.name}", False
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"{field.flag} is required: {field.text}")
        else:
            yield Setting(field.name, field.default, "default")
            continue
        yield Setting(field.name, _convert(field, given, source, is_text=is_text), source)


def _convert(field: ConfigField, given: Any, source: str, *, is_text: bool) -> Any:  # noqa: ANN401
    value = _split_text(field, given) if is_text else given
    try:
        converted = msgspec.convert(value, field.kind, strict=not is_text)
    except msgspec.ValidationError:
        raise _wrong(field, given, source) from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise _wrong(field, given, source)
    return converted


def _split_text(field: ConfigField, given: Any) -> Any:  # noqa: ANN401  text, or a flag's list
    if field.is_optional and isinstance(given, str) and given.lower() == "none":
        return None
    if field.is_list and isinstance(given, str):
        return [part.strip() for part in given.split(",") if part.strip()]
    return given


def _wrong(field: ConfigField, given: Any, source: str) -> ValueError:  # noqa: ANN401
    return ValueError(f"{source} is {given!r}, but must be {_expected(field)}: {field.text}")


def _expected(field: ConfigField) -> str:
    if typing.get_origin(field.base) is Literal:
        words = "one of " + ", ".join(str(value) for value in typing.get_args(field.base))
    elif field.is_list:
        words = "a list of texts"
    else:
        words = {int: "a whole number", float: "a number", bool: "true or false"}.get(
            field.base, "text"
        )
    return f"{words}, or none" if field.is_optional else words
