"""Trains the demo model and writes its folder: the command behind scripts/train_demo_model."""

import argparse
import time
from collections import deque
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM
from transformers.utils import logging

from scripts.demo_model.card import Facts, write_card
from scripts.demo_model.checkpoint import demo_config, save_checkpoint
from scripts.demo_model.corpus import Corpus, read_corpus, train_tokenizer
from scripts.demo_model.quality import answer, first_line, summarized
from scripts.demo_model.training import Plan, Progress, build_model, held_out_loss, train

PROGRESS_PERIOD_S = 2.0
FIRST_SAVE_STEP = 60  # something to look at after some minutes


def parse_flags() -> argparse.Namespace:
    """Defaults are those of the shipped checkpoint."""
    parser = argparse.ArgumentParser(
        prog="scripts/train_demo_model",
        description="Train a small Llama on the running Python's standard library.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("models/demo"), help="folder to write")
    add("--steps", type=int, default=1200, help="optimiser steps; they define the run")
    add("--seed", type=int, default=0, help="of the weights and the order of documents")
    add("--threads", type=int, default=1, help="CPU threads of torch")
    add("--batch-tokens", type=int, default=2048, help="tokens in one step")
    add("--learning-rate", type=float, default=0.02, help="peak, for the matrices")
    add("--hidden-size", type=int, default=256, help="a multiple of 64, the size of a head")
    add("--layers", type=int, default=4, help="decoder layers")
    add("--vocab-size", type=int, default=4096, help="tokens of the tokenizer, at least 257")
    add("--library", type=Path, help="read sources below this folder, not Python's library")
    add("--answers", type=int, default=50, help="answers to measure at the end")
    add("--answer-tokens", type=int, default=1024, help="most tokens of one such answer")
    add("--save-minutes", type=float, default=10.0, help="minutes between saves on the way")
    flags = parser.parse_args()
    if flags.hidden_size % 64 or flags.hidden_size < 64:
        parser.error("--hidden-size must be a multiple of 64, the size of a head")
    if flags.vocab_size < 257:
        parser.error("--vocab-size must be at least 257: all bytes and the end-of-text token")
    for name in ("steps", "threads", "batch_tokens", "layers", "answers", "answer_tokens"):
        if getattr(flags, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return parser.parse_args()


def show(line: str) -> None:
    """One line of progress, at once even into a file."""
    print(line, flush=True)


def encoded(tokenizer: Tokenizer, documents: tuple[str, ...]) -> list[list[int]]:
    """Token ids of each document behind its start token, which also ends the one before."""
    return [encoding.ids for encoding in tokenizer.encode_batch(list(documents))]


class Watcher:
    """Shows progress every few seconds and saves the model every some minutes."""

    def __init__(
        self, flags: argparse.Namespace, model: LlamaForCausalLM, tokenizer: Tokenizer
    ) -> None:
        self._flags, self._model, self._tokenizer = flags, model, tokenizer
        self._begin = self._shown = self._saved = time.monotonic()
        self._losses: deque[float] = deque(maxlen=20)
        self.last = Progress(0, 0.0, 0)

    @property
    def mean_loss(self) -> float:
        """Over the last 20 steps, or as many as there were."""
        return sum(self._losses) / max(1, len(self._losses))

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._begin

    def on_step(self, progress: Progress) -> None:
        """Called after every step."""
        self.last = progress
        self._losses.append(progress.loss)
        now = time.monotonic()
        if now - self._shown >= PROGRESS_PERIOD_S or progress.step == self._flags.steps:
            self._shown = now
            left_s = (self._flags.steps - progress.step) * self.elapsed_s / progress.step
            rate = progress.num_tokens / self.elapsed_s
            show(
                f"step {progress.step}/{self._flags.steps}  loss {self.mean_loss:.3f}"
                f"  {rate:,.0f} tokens/s  {left_s / 60:.1f} min left"
            )
        if progress.step == FIRST_SAVE_STEP or now - self._saved > self._flags.save_minutes * 60:
            self._saved = now
            save_checkpoint(self._model, self._tokenizer, self._flags.output)


def conclude(
    flags: argparse.Namespace, plan: Plan, corpus: Corpus, tokenizer: Tokenizer, watcher: Watcher
) -> None:
    """Measures the model as it was saved, rounded weights and all, and writes its card."""
    wall_minutes = watcher.elapsed_s / 60
    model = LlamaForCausalLM.from_pretrained(flags.output, dtype=torch.float32)
    loss = held_out_loss(model, [[*ids, 0] for ids in encoded(tokenizer, corpus.held_out)])
    show(f"held-out loss {loss:.4f} nats a token after {wall_minutes:.1f} min: {flags.output}")
    prompts = [first_line(document) for document in corpus.held_out[: flags.answers]]
    greedy = summarized(answer(flags.output, prompts, False, flags.answer_tokens, show))
    sampled = summarized(answer(flags.output, prompts, True, flags.answer_tokens, show))
    facts = Facts(
        num_parameters=model.num_parameters(),
        vocab_size=tokenizer.get_vocab_size(),
        num_documents=len(corpus.training),
        num_corpus_tokens=sum(map(len, encoded(tokenizer, corpus.training))),
        num_held_out=len(corpus.held_out),
        num_trained_tokens=watcher.last.num_tokens,
        num_threads=flags.threads,
        wall_minutes=wall_minutes,
        training_loss=watcher.mean_loss,
        held_out_loss=loss,
        max_answer_tokens=flags.answer_tokens,
        greedy=greedy,
        sampled=sampled,
    )
    write_card(flags.output, facts, plan)
    show(f"greedy answers: {greedy}\nsampled answers: {sampled}")


def main() -> None:
    """The whole run: corpus, tokenizer, training, saving, measuring, card."""
    flags = parse_flags()
    logging.disable_progress_bar()
    torch.set_num_threads(flags.threads)
    corpus = read_corpus(flags.library)
    tokenizer = train_tokenizer(corpus.training, flags.vocab_size)
    documents = encoded(tokenizer, corpus.training)
    config = demo_config(tokenizer.get_vocab_size(), flags.hidden_size, flags.layers)
    plan = Plan(flags.steps, flags.batch_tokens, flags.learning_rate, flags.seed)
    model = build_model(config, flags.seed)
    show(
        f"{model.num_parameters():,} parameters, {sum(map(len, documents)):,} tokens to learn from"
    )
    watcher = Watcher(flags, model, tokenizer)
    train(model, documents, plan, watcher.on_step)
    save_checkpoint(model, tokenizer, flags.output)
    conclude(flags, plan, corpus, tokenizer, watcher)


if __name__ == "__main__":
    main()
