"""A tokenizer for a model of any vocabulary: another model's, grown by further merges.

Engines want an entry per row of the output layer: some refuse a tokenizer that is smaller, others
show nothing for ids that it does not know. Trained merges come first and go on winning, so text
that the old tokenizer knew well is split as before; what is new joins two known printable tokens.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
SPACE = "Ġ"  # how byte-level BPE writes it


def write_tokenizer(source: Path, folder: Path, vocab_size: int, max_length: int) -> None:
    """Write the tokenizer of `source` with exactly `vocab_size` ids into `folder`.

    Raises ValueError where it is no byte-level BPE, or has more ids than that.
    """
    document = json.loads((source / TOKENIZER).read_text(encoding="utf-8"))
    grow(document, vocab_size)
    (folder / TOKENIZER).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    config["model_max_length"] = max_length
    (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")


def grow(document: dict[str, Any], vocab_size: int) -> None:
    """Add merges to a tokenizer.json until it has `vocab_size` ids. ValueError: see above."""
    model = document["model"]
    if model.get("type") != "BPE":
        raise ValueError(f"the tokenizer is {model.get('type')}, not BPE: name another --tokenizer")
    vocab: dict[str, int] = model["vocab"]
    special = {each["content"] for each in document.get("added_tokens", ())}
    num_ids = max([*vocab.values(), *(each["id"] for each in document.get("added_tokens", ()))]) + 1
    if num_ids > vocab_size:
        raise ValueError(
            f"the tokenizer has {num_ids} ids, the model's vocabulary {vocab_size}: make it larger"
        )
    ordered = sorted((each for each in vocab if each not in special), key=vocab.__getitem__)
    is_joined = bool(model["merges"]) and isinstance(model["merges"][0], str)
    for left, right in _pairs([each for each in ordered if _is_plain(each)]):
        if num_ids == vocab_size:
            return
        if left + right not in vocab:
            vocab[left + right] = num_ids
            model["merges"].append(f"{left} {right}" if is_joined else [left, right])
            num_ids += 1
    if num_ids < vocab_size:
        raise ValueError(f"the tokenizer can be grown to {num_ids} ids only, not to {vocab_size}")


def _is_plain(token: str) -> bool:
    return all(char == SPACE or ("!" <= char <= "~") for char in token)


def _pairs(tokens: list[str]) -> Iterator[tuple[str, str]]:
    for last, newest in enumerate(tokens):
        for other in tokens[:last]:
            yield other, newest
            yield newest, other
        yield newest, newest
