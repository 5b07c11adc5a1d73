"""Training of the demo model: packed rows, the optimiser, the schedule and the held-out loss.

Deterministic: one generator made from the seed chooses the weights and the order of documents,
and the number of steps, not the clock, decides where the learning rate stands.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from scripts.demo_model.optimizer import DemoOptimizer

# (until this share of the steps, row length): long rows cost up to three times as much a token, so
# they come last, when there is something to attend to; the last ones fill the whole context.
ROW_LENGTHS = ((0.88, 512), (0.98, 2048), (1.0, 4096))
MICRO_BATCH_TOKENS = 1024  # logits of one micro-batch (16 MB) stay in the last-level cache
WARM_UP_STEPS = 20
FALLING_SHARE = 0.45  # of the steps; most of the loss is won while the learning rate falls


@dataclass(frozen=True, slots=True)
class Plan:
    """What defines a run: the same plan on the same corpus and threads gives the same model.

    A step takes as many whole rows as `batch_tokens` hold, and at least one.
    """

    steps: int
    batch_tokens: int
    learning_rate: float
    seed: int


@dataclass(frozen=True, slots=True)
class Progress:
    """One finished step: its mean loss in nats a token, and the tokens seen so far."""

    step: int
    loss: float
    num_tokens: int


def packed_rows(documents: list[list[int]], length: int, order: random.Random) -> list[list[int]]:
    """Rows of `length` + 1 tokens, cut from all documents laid end to end in a random order.

    A row that would begin with the short rest of a cut document begins with the next document
    instead: answers begin at position 0 with a new document, so training must show that often.
    """
    rows: list[list[int]] = []
    row: list[int] = []
    for rest in order.sample(documents, len(documents)):
        while rest:
            taken = length + 1 - len(row)
            row += rest[:taken]
            rest = rest[taken:]
            if len(row) > length:
                rows.append(row)
                row = []
                if len(rest) < length // 2:
                    break
    return rows


def endless_rows(
    documents: list[list[int]], length: int, order: random.Random
) -> Iterator[list[int]]:
    """Epoch after epoch, shuffled, so that a long class does not fill a batch on its own."""
    while True:
        rows = packed_rows(documents, length, order)
        if not rows:
            raise ValueError(f"the documents do not fill one row of {length} tokens: add some")
        yield from order.sample(rows, len(rows))


def row_length(plan: Plan, step: int) -> int:
    """Row length of `step`, which counts from 0."""
    return next(length for until, length in ROW_LENGTHS if step / plan.steps < until)


def rate_share(plan: Plan, step: int) -> float:
    """Share of the peak learning rate at `step`: linear warm-up, a plateau, a linear fall to 0."""
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    return min(warm_up, (1 - step / plan.steps) / FALLING_SHARE)


def build_model(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """A fresh model; projections into the residual stream start smaller, as in GPT-2."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(1 / math.sqrt(2 * config.num_hidden_layers))
    return model


def token_loss(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Summed loss in nats of predicting rows[:, 1:] from rows[:, :-1]; rows is [rows, length+1]."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")


def train(
    model: LlamaForCausalLM,
    documents: list[list[int]],
    plan: Plan,
    on_step: Callable[[Progress], None],
) -> None:
    """Runs the plan on `model` in place and reports every step."""
    order = random.Random(plan.seed)
    optimizer = DemoOptimizer(model)
    length, num_tokens = 0, 0
    rows: Iterator[list[int]] = iter(())
    model.train()
    for step in range(plan.steps):
        if row_length(plan, step) != length:
            length = row_length(plan, step)
            rows = endless_rows(documents, length, order)
        num_rows = max(1, plan.batch_tokens // length)
        batch = torch.tensor([next(rows) for _ in range(num_rows)])
        loss = _backward(model, batch)
        optimizer.step(plan.learning_rate * rate_share(plan, step))
        num_tokens += num_rows * length
        on_step(Progress(step + 1, loss, num_tokens))


def _backward(model: LlamaForCausalLM, batch: Tensor) -> float:
    """Gradients of the mean loss over `batch` ([rows, length+1]), by micro-batches; that loss."""
    num_rows, width = batch.shape
    num_targets = num_rows * (width - 1)
    total = 0.0
    for rows in torch.split(batch, max(1, MICRO_BATCH_TOKENS // (width - 1))):
        loss = token_loss(model, rows) / num_targets
        torch.autograd.backward(loss)
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return total


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, documents: list[list[int]]) -> float:
    """Mean loss in nats a token over whole documents, each cut into windows of the context."""
    longest = int(model.config.max_position_embeddings)
    model.eval()
    total, num_targets = 0.0, 0
    for document in documents:
        for start in range(0, len(document) - 1, longest):
            row = torch.tensor([document[start : start + longest + 1]])
            total += token_loss(model, row).item()
            num_targets += row.shape[1] - 1
    model.train()
    return total / num_targets
