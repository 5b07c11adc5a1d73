"""A step cut into parts of about equal work, one for each thread of the node. Pure.

Every part is a step of its own over some of the rows. A row's bits do not depend on what shares its
batch, so a cut changes no token; where it falls is a matter of time alone. A prefill chunk may be
cut between two rows: the part behind the cut attends to what the part before it writes, layer by
layer (`engine/step_threads.py` keeps that order), and gets fewer rows, as each attends to more.
"""

import math
from collections import deque
from dataclasses import dataclass

import msgspec

from node.runner import SequenceStep, StepBatch
from scheduling.costs import num_pairs
from tandem.model_config import ModelConfig

# Steps of up to so many rows are bound by reading the weights: each product is shared by columns
# (kernels/cpu/team.py), as threads with rows of their own would read all of them each.
FEW_ROWS = 12
CUT_ROWS = 16  # a chunk is cut at multiples of these: a block of rows of the attention kernel
# A pair of a query and a key takes more than its multiplications, as attention's products are
# small and have exponentials between them. On one Zen 4 core attention of 1,024 rows reaches 131
# GFLOP/s in bfloat16 (128 rows: 70, 512 rows behind 3,072: 147) where products reach 205.
PAIR_EFFORT = 1.6

Piece = tuple[int, SequenceStep]  # index in the whole step, all of that sequence or some rows


@dataclass(frozen=True, slots=True)
class Part:
    """`step` is what one thread computes; its sequence i belongs to `sequence_ids[i]` of the whole.

    `follows`: it begins with the rest of the chunk that the part before it ends with.
    """

    step: StepBatch
    sequence_ids: tuple[int, ...]
    follows: bool = False


def pair_cost(config: ModelConfig) -> float:
    """What a row's attention to one token costs, in units of the row's matrix products."""
    num_projected = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
    num_weights = config.hidden_size * (num_projected + 3 * config.intermediate_size)
    return PAIR_EFFORT * 2 * config.num_heads * config.head_dim / num_weights


def cut_step(step: StepBatch, num_parts: int, cost_of_pair: float) -> tuple[Part, ...]:
    """Up to `num_parts` parts, none empty; rows of decode come first, then chunks."""
    num_sequences = len(step.sequences)
    if num_parts == 1:
        is_empty = not (num_sequences or step.padding_contexts)
        return () if is_empty else (Part(step, tuple(range(num_sequences))),)
    is_chunk = [len(sequence.token_ids) > 1 for sequence in step.sequences]
    order = sorted(range(num_sequences), key=is_chunk.__getitem__)
    pieces = deque((i, step.sequences[i]) for i in order)
    parts: list[Part] = []
    follows = False
    for n in range(num_parts):
        num_left = num_parts - n
        total = sum(_cost(sequence, cost_of_pair) for _, sequence in pieces)
        share = total / num_left if num_left > 1 else math.inf
        taken, is_cut = _take(pieces, share, cost_of_pair)
        padding = step.padding_contexts[n::num_parts]
        if taken or padding:
            rows = StepBatch(tuple(sequence for _, sequence in taken), padding)
            parts.append(Part(rows, tuple(i for i, _ in taken), follows))
        follows = is_cut
    return tuple(parts)


def _take(pieces: deque[Piece], share: float, cost_of_pair: float) -> tuple[list[Piece], bool]:
    """The first pieces, worth about `share`; whether the last of them was cut off a chunk."""
    taken: list[Piece] = []
    while pieces:
        sequence_id, sequence = pieces[0]
        num_rows = _num_rows_worth(sequence, share, cost_of_pair)
        if num_rows == 0:
            break
        if num_rows < len(sequence.token_ids):
            head, pieces[0] = _cut((sequence_id, sequence), num_rows)
            return [*taken, head], True
        taken.append(pieces.popleft())
        share -= _cost(sequence, cost_of_pair)
    return taken, False


def _cost(sequence: SequenceStep, cost_of_pair: float) -> float:
    num_rows = len(sequence.token_ids)
    return num_rows + cost_of_pair * num_pairs(num_rows, sequence.start)


def _num_rows_worth(sequence: SequenceStep, share: float, cost_of_pair: float) -> int:
    """How many of its first rows come closest to `share`: all, none, or a multiple of CUT_ROWS."""
    num_rows, cost = len(sequence.token_ids), _cost(sequence, cost_of_pair)
    if cost <= share:
        return num_rows
    if num_rows <= CUT_ROWS or sequence.question is not None:
        return num_rows if share >= cost / 2 else 0
    if share <= 0:
        return 0
    # n + p (s n + n^2 / 2) = share, solved for n in the form that is good for a small p, too.
    linear = 1 + cost_of_pair * sequence.start
    found = 2 * share / (linear + math.sqrt(linear**2 + 2 * cost_of_pair * share))
    return min(num_rows, round(found / CUT_ROWS) * CUT_ROWS)


def _cut(piece: Piece, num_rows: int) -> tuple[Piece, Piece]:
    """The first rows, which sample nothing, and the rest."""
    sequence_id, sequence = piece
    head = msgspec.structs.replace(sequence, token_ids=sequence.token_ids[:num_rows], sample=None)
    tail = msgspec.structs.replace(
        sequence, token_ids=sequence.token_ids[num_rows:], start=sequence.start + num_rows
    )
    return (sequence_id, head), (sequence_id, tail)
