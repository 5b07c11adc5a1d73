"""JSON schemas as grammars: what is accepted of them, and how much they may cost.

Gateways check with it what nodes will compile, so both read a schema in the same way. The grammar
itself is llguidance's (extra `structured`), loaded when the first request asks for one. Most of
what may explode in a schema is bounded by its fuel; what was found not to be, by the checks here.
For what nobody has found, a gateway compiles an unknown schema in a process of its own first. This
file is that program: text on stdin, what is wrong with it on stdout. So it imports nothing of ours.
"""

import importlib
import json
import math
import resource
import sys
from decimal import Decimal
from types import ModuleType
from typing import Any

INSTALL = "pip install 'tandem-serve[structured]'"
MAX_DEPTH = 64  # of nested maps and arrays
MAX_REMAINDERS = 10_000  # 29 ms and 4 MB
MAX_NUMBER = 1e15
_MOST_AT_LEAST, _MOST_AT_MOST = 10_000, 100_000  # 0.3 s to compile at worst
MAX_COUNTS = {
    **dict.fromkeys(("minLength", "minItems", "minProperties"), _MOST_AT_LEAST),
    **dict.fromkeys(("maxLength", "maxItems", "maxProperties"), _MOST_AT_MOST),
}
MAX_REFS = 500  # they may chain, and the compiler follows chains on its own stack
MAX_CHILD_BYTES, MAX_CHILD_CPU_S = 2 << 30, 5
REFUSED, NOT_INSTALLED = 3, 4  # exit statuses
# Between tokens of JSON: a space, or a new line and its indentation. Models that are lost draw any
# blanks that they may: of 40 in a row the demo model took all, which was most of its answers.
WHITESPACE = r" |\n[ \t]{0,20}"
_OPTIONS: dict[str, Any] = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": WHITESPACE,
    "coerce_one_of": False,
    "lenient": False,  # a keyword that is not kept is refused, not ignored
}


class NoGrammarLibraryError(RuntimeError):
    """llguidance is not installed here."""


def load_llguidance() -> ModuleType:
    """The library. Raises NoGrammarLibraryError that says how to install it."""
    try:
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise NoGrammarLibraryError(
            f"answers that keep a JSON schema need llguidance ({error}): {INSTALL}"
        ) from None


class _Bytes:
    """A vocabulary of the 256 bytes and an end, for schemas of any model."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([value]) for value in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: bytes | str) -> list[int]:
        """Token ids of a text."""
        return list(text.encode() if isinstance(text, str) else text)


def require_compilable(schema: str) -> None:
    """Compile it, and throw the result away.

    Raises ValueError that says what is wrong with the schema, NoGrammarLibraryError.
    """
    library = load_llguidance()
    compile_schema(library, schema, library.LLTokenizer(library.TokenizerWrapper(_Bytes())))


def compile_schema(library: ModuleType, schema: str, trie: Any) -> Any:  # noqa: ANN401
    """An `LLMatcher` at the beginning. ValueError says what is wrong with the schema."""
    check_schema(schema)
    grammar = library.LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS)
    matcher = library.LLMatcher(trie, grammar, log_level=0, limits=_limits(library))
    if not matcher.is_error():
        matcher.compute_bitmask()  # the slowest one: copies share what it finds out
    if matcher.is_error():
        raise _refused(matcher.get_error())
    return matcher


def _refused(problem: str) -> ValueError:
    return ValueError(f"the JSON schema cannot be kept: {summary(problem)}")


def summary(problem: str) -> str:
    """What llguidance says, without the parser's state that may follow."""
    if "coerce_one_of" in problem:
        return "oneOf is supported only where its parts exclude each other by a constant: use anyOf"
    said = problem.split("<state>")[0].replace("<non-verbose/>", "").strip()
    return said[:500] or "no reason given"


def _limits(library: ModuleType) -> Any:  # noqa: ANN401
    """Bounds of one grammar; docs/decisions/0020-structured-output.md has what they cost."""
    return library.LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


def check_schema(schema: str) -> None:
    """Depth and references. ValueError says what is wrong; the rest is the compiler's to say.

    `tandem.sampling.validate` bounds the size.
    """
    try:
        value = json.loads(schema)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ValueError(f"the JSON schema is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError('the JSON schema must be an object, like {"type": "object"}')
    _check_parts(value)


def _check_parts(value: dict[str, Any]) -> None:
    num_refs = 0
    numbers: list[float] = []
    multiples: list[Decimal] = []
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        parts: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                num_refs += _is_reference(each)
                multiples += _multiple(each)
                _check_counts(each)
                parts += each.values()
            elif isinstance(each, list):
                parts += each
        numbers += [each for each in parts if isinstance(each, int | float)]
        level = [each for each in parts if isinstance(each, dict | list)]
    if level:
        raise _too_deep()
    if num_refs > MAX_REFS:
        raise ValueError(f"the JSON schema has {num_refs} $ref, but may have {MAX_REFS}")
    _check_numbers(numbers)
    _check_multiples(multiples)


def _check_numbers(numbers: list[float]) -> None:
    """Written out -1e300 has 301 digits, and comparing it overflowed the compiler's stack."""
    for number in numbers:
        if number != 0 and not 1e-15 <= abs(number) <= MAX_NUMBER:
            raise ValueError(
                f"the JSON schema has the number {str(number)[:30]}, but may have 0 and those from "
                f"1e-15 to {MAX_NUMBER:g}, and their negatives: use a smaller bound, or none"
            )


def _check_counts(part: dict[str, Any]) -> None:
    """A regular expression of a billion characters at least keeps a compiler busy for minutes."""
    for name, most in MAX_COUNTS.items():
        value = part.get(name)
        if isinstance(value, int | float) and value > most:
            raise ValueError(
                f"{name} is {str(value)[:30]} in the JSON schema, but may be {most}: lower it, or "
                "leave it out"
            )


def _multiple(part: dict[str, Any]) -> list[Decimal]:
    value = part.get("multipleOf")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return [Decimal(str(value))] if is_number else []


def _check_multiples(multiples: list[Decimal]) -> None:
    """Remainders are counted by states: of 999,983 that took 8 s and 344 MB, of more an abort."""
    if not all(multiple > 0 for multiple in multiples):
        raise ValueError("multipleOf in the JSON schema must be above 0")
    num_places = max((-int(m.as_tuple().exponent) for m in multiples), default=0)
    states = math.lcm(*(int(m.scaleb(max(0, num_places))) for m in multiples))
    if states > MAX_REMAINDERS:
        raise ValueError(
            "the values of multipleOf in the JSON schema have a least common multiple of "
            f"{states} units of the last digit, but may have {MAX_REMAINDERS}: leave some out"
        )


def _is_reference(part: dict[str, Any]) -> bool:
    target = part.get("$ref")
    if isinstance(target, str) and not target.startswith("#"):
        raise ValueError(
            f"the JSON schema refers to {target[:100]!r}: only its own parts can be referred to, "
            'like "#/$defs/name"'
        )
    return isinstance(target, str)


def _too_deep() -> ValueError:
    return ValueError(
        f"the JSON schema nests deeper than {MAX_DEPTH} levels: name inner parts under $defs"
    )


def main() -> int:
    """Exit status: 0 for a schema that can be kept, else one of two, with the reason on stdout."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_CHILD_BYTES, MAX_CHILD_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CHILD_CPU_S, MAX_CHILD_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        require_compilable(sys.stdin.buffer.read().decode())
    except NoGrammarLibraryError as error:
        sys.stdout.write(str(error))
        return NOT_INSTALLED
    except ValueError as error:
        sys.stdout.write(str(error))
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
