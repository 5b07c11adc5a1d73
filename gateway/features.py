"""What a request's text looks like, as numbers that say nothing of what it says. Pure.

Counts and shares that mean the same in every language, after the lexical features of CLAIR
(arXiv 2606.07248). They cannot be turned back into text; the first word of the instruction, which
often is its verb, becomes one of 16 buckets. Of a long text the two ends are looked at: what is
asked stands there.
"""

import math
import re
import zlib

import numpy as np

from tandem.messages.client import Submit

NUM_BUCKETS = 16
END_CHARS = 2048
MAX_ASKED = 5000
FEATURES = (
    "log_table",  # what the table of lengths predicts for its tenant and class
    "log_max_tokens",
    "log_prompt_tokens",
    "has_text",
    "log_chars",
    "log_turns",
    "log_words",
    "chars_per_word",
    "log_lines",
    "log_last_line_chars",
    "log_questions",
    "ends_with_question",
    "digits",
    "capitals",
    "punctuation",
    "foreign",  # characters outside ASCII
    "code_symbols",
    "log_code_fences",
    "log_list_items",
    "log_asked",  # the N of "N words", "N sentences", in any language
    "temperature",
    "has_stop",
    "first_word",  # a bucket, 0 to 15
)
_ASKED = re.compile(r"(?<!\d)(\d{1,4})[\s-]+[^\W\d_]{3,}")
_LIST_ITEM = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s", re.MULTILINE)
_WORD = re.compile(r"\w+")
_QUESTION_MARKS = ("?", "？", "؟")


def _kind(character: str) -> int:
    if character in "{}()[];=<>_\\":
        return 5
    kinds = (character.isdigit(), character.isupper(), not character.isspace())
    return 0 if character.islower() else next((n for n, is_so in enumerate(kinds, 1) if is_so), 0)


# Kinds of characters by code; all beyond ASCII are the last one's.
_KINDS = np.array([*map(_kind, map(chr, range(128))), 4])


def features(
    submit: Submit, *, num_prompt_tokens: int, max_tokens: int, table_q50: float
) -> tuple[float, ...]:
    """Numbers in the order of `FEATURES`, all finite; takes 0.1 to 0.3 ms."""
    text, num_chars = _text_of(submit)
    instruction = submit.chat[-1].content[:END_CHARS] if submit.chat else text
    known = (
        math.log1p(table_q50),
        math.log1p(max_tokens),
        math.log1p(num_prompt_tokens),
        float(num_chars > 0),
        math.log1p(num_chars),
        math.log1p(len(submit.chat)),
    )
    params = submit.params
    temperature = 1.0 if params.temperature is None else min(max(params.temperature, 0.0), 4.0)
    return (
        *known,
        *_looks(text),
        math.log1p(_asked(instruction)),
        temperature,
        float(bool(params.stop)),
        float(_bucket(instruction)),
    )


def _text_of(submit: Submit) -> tuple[str, int]:
    """The two ends of the text, and how long all of it is."""
    if submit.chat:
        parts = [turn.content for turn in submit.chat]
        text = "\n".join([*parts[:-1][-1:], parts[-1]])
        return _ends(text), sum(map(len, parts))
    if submit.prompt is None:
        return "", 0
    data = bytes(submit.prompt.data)
    head, tail = data[: 4 * END_CHARS], data[4 * END_CHARS :][-4 * END_CHARS :]
    return _ends((head + tail).decode(errors="ignore")), len(data)


def _ends(text: str) -> str:
    if len(text) <= 2 * END_CHARS:
        return text
    return text[:END_CHARS] + text[-END_CHARS:]


def _looks(text: str) -> tuple[float, ...]:
    """From `log_words` to `log_list_items`."""
    words = _WORD.findall(text)
    stripped = text.rstrip()
    codes = np.frombuffer(text.encode("utf-32-le", errors="replace"), np.uint32)
    counts = np.bincount(_KINDS[np.minimum(codes, 128)], minlength=6) / max(1, len(text))
    _, digits, capitals, punctuation, foreign, code = counts.tolist()
    return (
        math.log1p(len(words)),
        sum(map(len, words)) / max(1, len(words)),
        math.log1p(text.count("\n")),
        math.log1p(len(stripped) - stripped.rfind("\n") - 1),
        math.log1p(sum(map(text.count, _QUESTION_MARKS))),
        float(stripped.endswith(_QUESTION_MARKS)),
        digits,
        capitals,
        punctuation,
        foreign,
        code,
        math.log1p(text.count("```")),
        math.log1p(len(_LIST_ITEM.findall(text))),
    )


def _asked(instruction: str) -> int:
    """The largest number that a word follows."""
    numbers = (int(number) for number in _ASKED.findall(instruction))
    return max((n for n in numbers if n <= MAX_ASKED), default=0)


def _bucket(instruction: str) -> int:
    word = _WORD.search(instruction)
    return 0 if word is None else zlib.crc32(word[0].lower().encode()) % NUM_BUCKETS
