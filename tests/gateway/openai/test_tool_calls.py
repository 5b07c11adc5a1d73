"""Tool calls in text that comes in pieces: the same is found however it is cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.openai.json_heads import NoCallError, ObjectScanner, read_head
from gateway.openai.tool_calls import (
    CallArguments,
    CallBegins,
    CallParser,
    Content,
    Found,
    NamedCall,
)

HERMES = '<tool_call>\n{"name": "f", "arguments": {"a": "}\\"{", "b": [1, {}]}}\n</tool_call>'
SECOND = '<tool_call>{"name": "g", "arguments": {}}</tool_call>'
LLAMA = '{"name": "f", "parameters": {"a": 1}}'
F_ARGUMENTS = '{"a": "}\\"{", "b": [1, {}]}'

Call = tuple[str, str]
CASES: dict[str, tuple[str, str, list[Call]]] = {
    "text": ("nothing of interest < tool_call >", "nothing of interest < tool_call >", []),
    "hermes": (HERMES, "", [("f", F_ARGUMENTS)]),
    "text before": ("I ask.\n\n" + HERMES, "I ask.", [("f", F_ARGUMENTS)]),
    "two": (HERMES + "\n" + SECOND, "", [("f", F_ARGUMENTS), ("g", "{}")]),
    "text after": (SECOND + "\nthere", "there", [("g", "{}")]),
    "unknown tools are the caller's to judge": (
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        "",
        [("other", "{}")],
    ),
    "another order": (
        '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>',
        "",
        [("f", '{"a":1}')],
    ),
    "arguments as text": (
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [("f", '{"a": 1}')],
    ),
    "no arguments": ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    "no call": ("<tool_call>hm</tool_call>!", "<tool_call>hm</tool_call>!", []),
    "never closed": ("a <tool_call>hm", "a <tool_call>hm", []),
    "cut in the arguments": (
        '<tool_call>{"name": "f", "arguments": {"a": [1',
        "",
        [("f", '{"a": [1')],
    ),
    "no end tag": ('<tool_call>{"name": "f", "arguments": {}}', "", [("f", "{}")]),
    "half a marker": ("a <tool_ca", "a <tool_ca", []),
    "llama": (LLAMA, "", [("f", '{"a": 1}')]),
    "llama, blanks": ("\n " + LLAMA + "\n", "", [("f", '{"a": 1}')]),
    "llama, two": (
        LLAMA + "; " + '{"name": "g", "parameters": {}}',
        "",
        [("f", '{"a": 1}'), ("g", "{}")],
    ),
    "llama with a type": (
        '{"type": "function", "name": "f", "parameters": {"a": 1}}',
        "",
        [("f", '{"a": 1}')],
    ),
    "json of another kind": ('{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 36}', []),
    "json of no tool": (
        '{"name": "Ada", "parameters": {"a": 1}}',
        '{"name": "Ada", "parameters": {"a": 1}}',
        [],
    ),
    "json cut short": ('{"name": "f", "para', '{"name": "f", "para', []),
    "a name of many parts": ('{"name": "\\u0066", "arguments": {}}', "", [("f", "{}")]),
}


def read(pieces: list[str], *, is_parallel: bool = True) -> tuple[str, list[Call]]:
    parser = CallParser(["f", "g"], map(str, itertools.count()).__next__, is_parallel=is_parallel)
    found: list[Found] = []
    for piece in pieces:
        found += parser.push(piece)
    found += parser.flush()
    return joined(found)


def joined(found: list[Found]) -> tuple[str, list[Call]]:
    """Content, and calls; indices must begin at 0 and arguments follow their own call."""
    text, names, arguments = "", [], []
    for each in found:
        match each:
            case Content(more):
                assert more
                text += more
            case CallBegins(index, call_id, name):
                assert (index, call_id) == (len(names), str(index))
                names.append(name)
                arguments.append("")
            case CallArguments(index, more):
                assert index == len(names) - 1 and more
                arguments[index] += more
    return text, list(zip(names, arguments, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_at_once_and_character_by_character(case: str) -> None:
    text, content, calls = CASES[case]
    assert read([text]) == (content, calls)
    assert read(list(text)) == (content, calls)


@given(st.sampled_from(sorted(CASES)), st.lists(st.integers(1, 7), min_size=40, max_size=40))
def test_however_it_is_cut(case: str, sizes: list[int]) -> None:
    text, content, calls = CASES[case]
    ends = [0, *itertools.accumulate(sizes), len(text)]
    assert read([text[a:b] for a, b in itertools.pairwise(ends)]) == (content, calls)


@given(st.text(alphabet='{}"\\:,; naf<tol_c/>', max_size=60))
def test_what_is_no_call_is_never_lost(noise: str) -> None:
    at_once, letters = read([noise]), read(list(noise))
    assert at_once == letters
    if not at_once[1]:
        assert at_once[0] == noise


def test_one_call_at_most_where_that_is_asked() -> None:
    assert read([HERMES + SECOND], is_parallel=False) == ("", [("f", F_ARGUMENTS)])
    assert read(list(HERMES + SECOND), is_parallel=False) == ("", [("f", F_ARGUMENTS)])


def test_calls_are_told_as_soon_as_they_are_clear() -> None:
    parser = CallParser(["f"], lambda: "id", is_parallel=True)
    assert parser.push("Well. <tool") == [Content("Well.")]
    assert parser.push('_call>{"name": "f", "argu') == []
    assert parser.push('ments": {"a": ') == [CallBegins(0, "id", "f"), CallArguments(0, '{"a": ')]
    assert parser.push('"x') == [CallArguments(0, '"x')]
    assert parser.push('"}}</tool_call>') == [CallArguments(0, '"}')]
    assert parser.flush() == []


def test_a_named_call_is_all_arguments() -> None:
    call = NamedCall("f", lambda: "id")
    found = call.push('{"a"') + call.push("") + call.push(": 1}") + call.flush()
    assert joined_ids(found) == [("id", "f", '{"a": 1}')]
    empty = NamedCall("f", lambda: "id")
    assert empty.flush() == [CallBegins(0, "id", "f")]


def joined_ids(found: list[Found]) -> list[tuple[str, str, str]]:
    begun = [each for each in found if isinstance(each, CallBegins)]
    text = "".join(each.text for each in found if isinstance(each, CallArguments))
    return [(each.call_id, each.name, text) for each in begun]


def test_heads_and_objects() -> None:
    head = read_head('{"name":"f","arguments":{}')
    assert head is not None and (head.name, head.has_arguments) == ("f", True)
    for short in ("", "{", '{"na', '{"name"', '{"name": "f', '{"name": "f"', '{"name": "f", '):
        assert read_head(short) is None
    for other in ("[", '{"a"', '{"name": 5', '{"name": "f" :', '{"type": "x"', '{"name":"\\q",'):
        with pytest.raises(NoCallError):
            read_head(other)
    scanner = ObjectScanner()
    assert scanner.push('{"a": "}') == 8 and not scanner.is_over
    assert scanner.push('"}, rest') == 2 and scanner.is_over
