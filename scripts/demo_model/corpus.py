"""The demo model's corpus: the running Python's standard library, and a tokenizer made from it.

One document is one top-level function or class with its decorators and the comment lines right
above it. Exact duplicates count once. Which documents are held out depends on their text only,
so the held-out loss of two runs with the same Python patch version compares.
"""

import ast
import hashlib
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END_OF_TEXT = "<|endoftext|>"
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
)
HELD_OUT_ONE_IN = 50


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents in the order of their files; `held_out` is about 2 % of them."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]


def library_files(root: Path) -> list[Path]:
    """All library sources under `root` but tests and installed packages, in a fixed order."""
    files = (path.relative_to(root) for path in root.rglob("*.py"))
    return [root / path for path in sorted(files) if not SKIPPED_FOLDERS & set(path.parts)]


def documents_of(source: str) -> Iterator[str]:
    """Top-level functions and classes of one module, each with its decorators and comments."""
    lines = source.split("\n")  # as ast counts: splitlines() would also cut at form feeds
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        first = min([node.lineno, *(mark.lineno for mark in node.decorator_list)]) - 1
        while first > 0 and lines[first - 1].startswith("#"):
            first -= 1
        yield "\n".join(lines[first : node.end_lineno]).rstrip() + "\n"


def read_corpus(root: Path | None = None) -> Corpus:
    """Reads and splits the library under `root`, by default the running Python's own."""
    root = root or Path(sysconfig.get_path("stdlib"))
    found: dict[str, None] = {}
    for path in library_files(root):
        with tokenize.open(path) as file:
            found.update(dict.fromkeys(documents_of(file.read())))
    held_out = [text for text in found if _is_held_out(text)]
    training = [text for text in found if not _is_held_out(text)]
    if not held_out or not training:
        raise ValueError(
            f"only {len(found)} functions and classes under {root}, too few to hold some out; "
            "does this Python have its library as sources?"
        )
    return Corpus(tuple(training), tuple(held_out))


def _is_held_out(text: str) -> bool:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


def train_tokenizer(documents: tuple[str, ...], vocab_size: int) -> Tokenizer:
    """A byte-level BPE whose token 0 opens every encoded text, as it opens every document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B",
        special_tokens=[(END_OF_TEXT, 0)],
    )
    return tokenizer
