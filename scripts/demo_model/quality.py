"""How good the demo model's answers are: do they end, how long are they, do they parse.

Prompts are the first lines of held-out documents, so the model has seen none of them.
"""

import ast
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from scripts.demo_model.corpus import END_OF_TEXT

SHORT_TOKENS = 256
BATCH_PROMPTS = 10


@dataclass(frozen=True, slots=True)
class Answer:
    """One prompt with its continuation; `num_tokens` counts the end-of-text token too."""

    text: str
    num_tokens: int
    has_ended: bool


@dataclass(frozen=True, slots=True)
class Quality:
    """Shares are of all prompts, but `parsed_share`: of the answers that ended."""

    num_prompts: int
    ended_short_share: float
    ended_share: float
    parsed_share: float
    median_tokens: int
    p90_tokens: int


def first_line(document: str) -> str:
    """The line that opens the function or class; decorators and comments are passed over."""
    lines = document.split("\n")
    return next((line for line in lines if line.startswith(("def ", "class ", "async "))), lines[0])


def parses(text: str) -> bool:
    """Whether Python accepts the text as a module."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # invalid escapes are still Python
            ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


@torch.no_grad()
def answer(
    folder: Path,
    prompts: list[str],
    sampled: bool,
    max_tokens: int,
    show: Callable[[str], None],
) -> list[Answer]:
    """Continues every prompt, greedily or with the folder's default sampling."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sampling = {} if sampled else {"temperature": None, "top_p": None}
    answers = []
    for start in range(0, len(prompts), BATCH_PROMPTS):
        inputs = tokenizer(
            prompts[start : start + BATCH_PROMPTS], return_tensors="pt", padding=True
        )
        torch.manual_seed(start)
        ids = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_tokens,
            do_sample=sampled,
            **sampling,
        )
        end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
        width = inputs["input_ids"].shape[1]
        for prompt, row in zip(prompts[start:], ids[:, width:].tolist(), strict=False):
            has_ended = end in row
            tokens = row[: row.index(end)] if has_ended else row
            text = prompt + tokenizer.decode(tokens)
            answers.append(Answer(text, len(tokens) + has_ended, has_ended))
        show(f"{'sampled' if sampled else 'greedy'} answers {len(answers)}/{len(prompts)}")
    return answers


def summarized(answers: list[Answer]) -> Quality:
    """Figures over at least one answer."""
    lengths = sorted(answer.num_tokens for answer in answers)
    ended = [answer for answer in answers if answer.has_ended]
    return Quality(
        num_prompts=len(answers),
        ended_short_share=sum(a.num_tokens <= SHORT_TOKENS for a in ended) / len(answers),
        ended_share=len(ended) / len(answers),
        parsed_share=sum(parses(a.text) for a in ended) / max(1, len(ended)),
        median_tokens=int(statistics.median(lengths)),
        p90_tokens=lengths[len(lengths) * 9 // 10],
    )
