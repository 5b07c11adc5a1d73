"""Finds tool calls in the text of an answer while it comes. Pure.

Two forms are read: Hermes' (`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number
of them, text around) and Llama 3's (the answer is `{"name": ..., "parameters": {...}}`, several
separated by `;`). What may become a call is held back until it is clear; what does not become one
is text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.openai.json_heads import Head, NoCallError, ObjectScanner, read_head

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_HELD_CHARS = 4096  # of what may become a call: the grammar of forced ones allows many blanks
BLANKS = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Content:
    """Text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    """Call number `index` of the answer."""

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of its arguments' JSON text."""

    index: int
    text: str


Found = Content | CallBegins | CallArguments
NewId = Callable[[], str]


class NamedCall:
    """The whole answer is the arguments of one function."""

    def __init__(self, name: str, new_id: NewId) -> None:
        self._name = name
        self._new_id = new_id
        self.num_calls = 0

    def push(self, text: str) -> list[Found]:
        """More text."""
        found: list[Found] = []
        if not self.num_calls:
            self.num_calls = 1
            found.append(CallBegins(0, self._new_id(), self._name))
        return [*found, CallArguments(0, text)] if text else found

    def flush(self) -> list[Found]:
        """The text is over."""
        return self.push("")


class CallParser:
    """See the module. `names` are those of the tools; `is_parallel` false: one call at most."""

    def __init__(self, names: Sequence[str], new_id: NewId, *, is_parallel: bool) -> None:
        self._names = frozenset(names)
        self._new_id = new_id
        self._is_parallel = is_parallel
        self._held = ""
        self._blanks = ""
        self._state: Callable[[], list[Found] | None] = self._at_start
        self._after: Callable[[], list[Found] | None] = self._in_text
        self._scanner: ObjectScanner | None = None
        self._is_over = False
        self.num_calls = 0

    def push(self, text: str) -> list[Found]:
        """More text; gives what has become clear."""
        self._held += text
        found: list[Found] = []
        while (news := self._state()) is not None:
            found += news
        return found

    def flush(self) -> list[Found]:
        """The text is over: what is held back was text, but for the rest of a call."""
        self._is_over = True
        found = self.push("")
        rest, self._held = self._held, ""
        return [*found, Content(rest)] if rest and not self._is_within_call() else found

    # Each state takes from `_held` what it can and says what it found; None: it needs more.

    def _at_start(self) -> list[Found] | None:
        """Nothing but blanks so far: the whole answer may be a call in Llama's form."""
        begun = self._held.lstrip(BLANKS)
        if not begun:
            return None
        self._state = self._in_bare_head if begun[0] == "{" else self._in_text
        return []

    def _in_bare_head(self) -> list[Found] | None:
        try:
            head = read_head(self._held)
        except NoCallError:
            self._state = self._in_text
            return []
        if head is None and not self._is_over and len(self._held) <= MAX_HELD_CHARS:
            return None
        if head is not None and head.name in self._names:
            self._after = self._between_bare_calls
            return self._begin(head)
        self._state = self._in_text
        return []

    def _between_bare_calls(self) -> list[Found] | None:
        """After a call of Llama's form: its closing brace, a semicolon, another call."""
        rest = self._held.lstrip(BLANKS + "};")
        if not rest:
            self._held = ""
            return None
        self._held = rest
        self._state = self._in_bare_head if rest[0] == "{" else self._in_text
        return []

    def _in_text(self) -> list[Found] | None:
        at = self._held.find(OPEN)
        if at < 0:
            shown = self._held
            if not self._is_over:
                shown = shown[: len(shown) - _num_begun(shown, OPEN)].rstrip(BLANKS)
            self._held = self._held[len(shown) :]
            return [Content(shown)] if shown else None
        before, self._held = self._held[:at], self._held[at + len(OPEN) :]
        self._state = self._in_tagged_head
        text = before.rstrip(BLANKS)
        self._blanks = before[len(text) :]  # the template's, not the answer's, if a call follows
        return [Content(text)] if text else []

    def _in_tagged_head(self) -> list[Found] | None:
        try:
            head = read_head(self._held)
        except NoCallError:
            return self._whole_tagged_call()
        if head is not None:
            self._after = self._to_close
            return self._begin(head)
        is_all = CLOSE in self._held or self._is_over
        return self._whole_tagged_call() if is_all else None

    def _whole_tagged_call(self) -> list[Found] | None:
        """The keys come in another order: wait for the end, and read it at once."""
        at = self._held.find(CLOSE)
        if at < 0 and not self._is_over:
            return None
        inside = self._held if at < 0 else self._held[:at]
        self._held = "" if at < 0 else self._held[at + len(CLOSE) :]
        call = _decoded_call(inside)
        if call is None:  # nothing of it may be lost
            self._state = self._in_text
            return [Content(self._blanks + OPEN + inside + ("" if at < 0 else CLOSE))]
        self._state = self._after_calls
        return self._named(*call)

    def _begin(self, head: Head) -> list[Found]:
        self._held = self._held[head.end :]
        if not head.has_arguments:
            self._state = self._after
            return self._named(head.name, "{}")
        self._state, self._scanner = self._in_arguments, ObjectScanner()
        return self._named(head.name, "")

    def _named(self, name: str, arguments: str) -> list[Found]:
        index, self.num_calls = self.num_calls, self.num_calls + 1
        if self._is_surplus():
            return []
        begins: list[Found] = [CallBegins(index, self._new_id(), name)]
        return [*begins, CallArguments(index, arguments)] if arguments else begins

    def _in_arguments(self) -> list[Found] | None:
        assert self._scanner is not None, "_begin made it"
        num_taken = self._scanner.push(self._held)
        text, self._held = self._held[:num_taken], self._held[num_taken:]
        if self._scanner.is_over:
            self._state = self._after
        elif not text:
            return None
        if self._is_surplus() or not text:
            return []
        return [CallArguments(self.num_calls - 1, text)]

    def _to_close(self) -> list[Found] | None:
        """What follows the arguments up to the end tag says nothing."""
        at = self._held.find(CLOSE)
        if at < 0:
            return None
        self._held = self._held[at + len(CLOSE) :]
        self._state = self._after_calls
        return []

    def _after_calls(self) -> list[Found] | None:
        """Blanks between calls are no content."""
        self._held = self._held.lstrip(BLANKS)
        if not self._held:
            return None
        self._state = self._in_text
        return []

    def _is_surplus(self) -> bool:
        return self.num_calls > 1 and not self._is_parallel

    def _is_within_call(self) -> bool:
        return self._state in (self._in_arguments, self._to_close)


def _num_begun(text: str, marker: str) -> int:
    """Length of the longest end of the text with which the marker begins."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[len(text) - length :]):
            return length
    return 0


def _decoded_call(text: str) -> tuple[str, str] | None:
    """Name and arguments of a call that is all there; None where it is none."""
    try:
        call: Any = msgspec.json.decode(text.strip(BLANKS))
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        return call["name"], arguments
    return call["name"], msgspec.json.encode(arguments).decode()
