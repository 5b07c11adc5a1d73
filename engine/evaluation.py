"""Answers to what evaluations ask about a chunk: hidden states, classes, logprobs of its tokens.

A row's answer depends on its own hidden state alone, so with invariant numerics neither batch nor
chunks change its bits; sums over rows are of integers, which add up the same in any parts.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from engine.batch import AskedRows
from engine.decoder import Decoder, States
from engine.logprobs import token_logprobs
from engine.sampler import NOT_NUMBERS
from node.runner import (
    LOWEST_LOGPROB,
    MAX_SUMMED,
    SUM_BITS,
    ChunkQuestion,
    ChunkValues,
    Int32Array,
    Sampled,
)

# Logits of 64 rows over a vocabulary of 152,064 are 39 MB of float32.
BLOCK_ROWS = 64
Scores = tuple[NDArray[np.float32], Int32Array, NDArray[np.float32]]  # chosen, top ids, top


def answer(decoder: Decoder, states: States, asked: AskedRows) -> Sampled:
    """The values that a chunk was asked for, or an error where they are no numbers."""
    question = asked.question
    if question.kind == "logprobs":
        values = _logprobs(decoder, states, asked.begin + question.first_row, question)
    elif question.kind == "sum":
        values = _sum(decoder, states, asked)
    else:
        last = slice(asked.end - 1, asked.end)
        if question.kind == "last":
            row = decoder.hidden(states, last)
        else:
            row = decoder.head(decoder.normed(states, last))
        vector: NDArray[np.float32] = row[0].float().cpu().numpy()
        values = ChunkValues(vector=vector) if np.isfinite(vector).all() else None
    return Sampled(0, error=NOT_NUMBERS) if values is None else Sampled(0, values=values)


def _blocks(begin: int, end: int) -> Iterable[slice]:
    return (slice(at, min(at + BLOCK_ROWS, end)) for at in range(begin, end, BLOCK_ROWS))


def _sum(decoder: Decoder, states: States, asked: AskedRows) -> ChunkValues | None:
    sums: list[torch.Tensor] = []
    for rows in _blocks(asked.begin, asked.end):
        normed = decoder.hidden(states, rows).double()
        if not bool((normed.abs() < MAX_SUMMED).all()):
            return None
        sums.append((normed * 2.0**SUM_BITS).round().long().sum(0))
    return ChunkValues(vector=torch.stack(sums).sum(0).cpu().numpy())


def _logprobs(
    decoder: Decoder, states: States, begin: int, question: ChunkQuestion
) -> ChunkValues | None:
    parts: list[Scores] = []
    for rows in _blocks(begin, begin + len(question.next_ids)):
        logits = decoder.head(decoder.normed(states, rows))
        if not bool(torch.isfinite(logits.amax(-1)).all()):
            return None
        next_ids = question.next_ids[rows.start - begin : rows.stop - begin]
        score = score_on_cpu if logits.device.type == "cpu" else score_on_device
        parts.append(score(logits, next_ids, question.num_top))
    if not parts:
        return ChunkValues()
    chosen, top_ids, top = (np.concatenate(each) for each in zip(*parts, strict=True))
    return ChunkValues(
        logprobs=np.maximum(chosen, np.float32(LOWEST_LOGPROB)),
        top_ids=top_ids,
        top_logprobs=np.maximum(top, np.float32(LOWEST_LOGPROB)),
    )


def score_on_cpu(logits: torch.Tensor, next_ids: Int32Array, num_top: int) -> Scores:
    """Row by row in float64, with the bits that a drawn token's logprob has."""
    rows = logits.double().numpy()
    scored = [
        token_logprobs(int(token_id), row, num_top)
        for row, token_id in zip(rows, next_ids, strict=True)
    ]
    flat = [pair for _, top in scored for pair in top]
    return (
        np.array([logprob for logprob, _ in scored], np.float32),
        np.array([token_id for token_id, _ in flat], np.int32),
        np.array([logprob for _, logprob in flat], np.float32),
    )


def score_on_device(logits: torch.Tensor, next_ids: Int32Array, num_top: int) -> Scores:
    """All rows where they are, in float32: a row of a large vocabulary is dear to copy."""
    logprobs = torch.log_softmax(logits.float(), -1)
    ids = torch.from_numpy(next_ids.astype(np.int64)).to(logits.device).unsqueeze(1)
    top, top_ids = logprobs.topk(min(num_top, logits.shape[-1]), -1)
    return (
        logprobs.gather(1, ids).flatten().cpu().numpy(),
        top_ids.int().flatten().cpu().numpy(),
        top.flatten().cpu().numpy(),
    )
