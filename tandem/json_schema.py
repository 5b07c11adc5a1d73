"""JSON schemas as grammars: what is accepted of them, and how much they may cost. Pure.

Gateways check with it what nodes will compile, so both read a schema in the same way. The grammar
itself is llguidance's (extra `structured`), loaded when the first request asks for one. What may be
exponential in a schema or in a regular expression is bounded by fuel, not by time: the same schema
is accepted or refused everywhere.
"""

import importlib
import json
from types import ModuleType
from typing import Any

INSTALL = "pip install 'tandem-serve[structured]'"
MAX_DEPTH = 64  # of nested maps and arrays
MAX_REFS = 500  # they may chain, and the compiler follows chains on its own stack
# Between tokens of JSON. Unbounded blanks are what a model that is lost draws until max_tokens.
WHITESPACE = r"[ \n\r\t]{1,40}"
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


def require_compilable(schema: str) -> None:
    """Compile it, without a vocabulary, and throw the result away.

    Raises ValueError that says what is wrong with the schema, NoGrammarLibraryError.
    """
    library = load_llguidance()
    grammar = _to_grammar(library, schema)
    validate = library.LLMatcher.validate_grammar_with_warnings
    is_error, messages = validate(grammar, None, limits=_limits(library))
    if is_error:
        raise _refused(messages[0])


def compile_schema(library: ModuleType, schema: str, trie: Any) -> Any:  # noqa: ANN401
    """An `LLMatcher` at the beginning. ValueError says what is wrong with the schema."""
    grammar = _to_grammar(library, schema)
    matcher = library.LLMatcher(trie, grammar, log_level=0, limits=_limits(library))
    if not matcher.is_error():
        matcher.compute_bitmask()  # the slowest one: copies share what it finds out
    if matcher.is_error():
        raise _refused(matcher.get_error())
    return matcher


def _to_grammar(library: ModuleType, schema: str) -> str:
    check_schema(schema)
    grammar: str = library.LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS)
    return grammar


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
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        parts: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                num_refs += _is_reference(each)
                parts += each.values()
            elif isinstance(each, list):
                parts += each
        level = [each for each in parts if isinstance(each, dict | list)]
    if level:
        raise _too_deep()
    if num_refs > MAX_REFS:
        raise ValueError(f"the JSON schema has {num_refs} $ref, but may have {MAX_REFS}")


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
