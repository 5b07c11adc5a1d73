"""The model card: what was trained on what, for how long, with which result, in Markdown."""

import math
import platform
import textwrap
from dataclasses import dataclass
from pathlib import Path

from scripts.demo_model.quality import SHORT_TOKENS, Quality
from scripts.demo_model.training import Plan

FRONT_MATTER = """---
language: code
license: other
license_name: psf-2.0
license_link: https://docs.python.org/3/license.html
pipeline_tag: text-generation
---
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a finished run knows about itself; losses are nats a token."""

    num_parameters: int
    vocab_size: int
    num_documents: int
    num_corpus_tokens: int
    num_held_out: int
    num_trained_tokens: int
    num_threads: int
    wall_minutes: float
    training_loss: float
    held_out_loss: float
    max_answer_tokens: int
    greedy: Quality
    sampled: Quality


def write_card(folder: Path, facts: Facts, plan: Plan) -> None:
    """Writes README.md into the model's folder."""
    text = _head(facts) + _training(facts, plan) + _answers(facts)
    (folder / "README.md").write_text(text)


def _wrapped(paragraph: str, indent: str = "") -> str:
    """One paragraph as lines of at most 100 characters, the second and later ones indented."""
    text = " ".join(paragraph.split())
    # A line that ends in a hyphen would be shown with a blank after it.
    return textwrap.fill(text, 100, subsequent_indent=indent, break_on_hyphens=False)


def _head(facts: Facts) -> str:
    what = f"""A Llama-architecture model of {facts.num_parameters / 1e6:.1f} million parameters
        (context 4,096, byte-level BPE of {facts.vocab_size:,} tokens, tied embeddings, bfloat16)
        that continues Python source. It is here to show and test a serving system with text one
        can read: answers look like Python and have long-tailed lengths, and with the default
        sampling {facts.sampled.ended_share:.0%} of them ended by themselves within
        {facts.max_answer_tokens:,} tokens. It knows little, so do not run what it writes."""
    use = """A text starts with `<|endoftext|>` (token 0, added by the tokenizer) and ends with it.
        The chat template turns the last message into comment lines, which the model continues
        with a definition."""
    title = "# Demo model: small talk in Python"
    return f"{FRONT_MATTER}\n{title}\n\n{_wrapped(what)}\n\n{_wrapped(use)}\n"


def _training(facts: Facts, plan: Plan) -> str:
    num_epochs = facts.num_trained_tokens / facts.num_corpus_tokens
    points = [
        f"""Data: the standard library sources of Python {platform.python_version()} without its
        tests. One document is one top-level function or class with its decorators and comments,
        duplicates dropped: {facts.num_documents:,} documents, {facts.num_corpus_tokens:,} tokens.
        Held out: {facts.num_held_out} more documents (about 2 %, chosen by a hash of their
        text).""",
        """Licence of the data: the [PSF licence](https://docs.python.org/3/license.html), version
        2, and those of the parts that Python's `LICENSE` file names. The model can repeat passages
        of the library, so that licence goes with it.""",
        f"""Run: {plan.steps:,} steps of {plan.batch_tokens:,} tokens, in all
        {facts.num_trained_tokens / 1e6:.1f} million tokens or {num_epochs:.1f} epochs, in
        {facts.wall_minutes:.0f} minutes of wall time on {facts.num_threads} CPU thread(s), in
        float32. Rows of 512 tokens, then of 2,048, at last of 4,096. Muon for the matrices, AdamW
        for embedding and norms.""",
        f"""Loss at the end, in nats a token: {facts.training_loss:.2f} in training (last 20 steps,
        long rows),
        **{facts.held_out_loss:.2f} on the held-out documents** (perplexity
        {math.exp(facts.held_out_loss):.1f}), measured with the rounded weights shipped here.""",
        f"""Again: `scripts/train_demo_model --steps {plan.steps} --seed {plan.seed} --threads
        {facts.num_threads}`. The same Python patch version, seed and threads give the same loss to
        two digits.""",
    ]
    return "\n## Training\n\n" + "".join(f"{_wrapped('- ' + point, '  ')}\n" for point in points)


def _answers(facts: Facts) -> str:
    greedy, sampled = facts.greedy, facts.sampled
    rows = [
        (f"ended within {SHORT_TOKENS} tokens", "ended_short_share", ".0%"),
        (f"ended within {facts.max_answer_tokens:,} tokens", "ended_share", ".0%"),
        ("of these, accepted by `ast.parse`", "parsed_share", ".0%"),
        ("median length in tokens", "median_tokens", "d"),
        ("90th percentile of length", "p90_tokens", "d"),
    ]
    table = "\n".join(
        f"| {name} | {getattr(greedy, field):{form}} | {getattr(sampled, field):{form}} |"
        for name, field, form in rows
    )
    note = f"""Greedy answers of a model this small tend to repeat themselves for ever:
        {1 - greedy.ended_share:.0%} of these did not end by themselves. That is why sampling is the
        default; its answers end more often, and parse less often."""
    return f"""
## Answers

To the first lines of {greedy.num_prompts} held-out documents, greedy and with the default sampling
(temperature 0.8, top-p 0.95):

| | greedy | sampled |
|---|---|---|
{table}

{_wrapped(note)}
"""
