"""Draws the next token of every row, statelessly.

Order of operations, per row and in float64 (the order of vLLM, with min-p last as in
transformers):

1. logit bias is added; 2. end-of-text and stop ids are banned until `min_tokens` exist;
3. repetition penalty over prompt and output, frequency and presence penalty over the output; then
   what would break the request's JSON schema is banned (`engine/grammar.py`);
4. temperature (0: the largest score wins, the lowest id among equals, and nothing below applies);
5. top-k (ties with its last token stay), top-p over what top-k left, min-p;
6. Gumbel noise of (seed, choice, output index, token id) is added and the largest sum wins.

Log-probabilities are the log-softmax of the raw logits, before all of this. A row's result depends
on its logits and its request alone, bit for bit: sums are of integers, everything else is exact
elementwise arithmetic or comparison (`engine/noise.py`).
"""

import logging
import math
import threading
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.argmax import largest_bfloat16
from engine.grammar import BoolArray, Grammars
from engine.logprobs import token_logprobs
from engine.noise import Float64Array
from engine.sampler_cpu import adjust, draw
from engine.sampler_reference import Draws, adjust_reference, draw_reference
from node.runner import Int32Array, Sampled, SampleRequest
from tandem.sampling import (
    NEUTRAL_REPETITION_PENALTY,
    NEUTRAL_TEMPERATURE,
    NEUTRAL_TOP_K,
    NEUTRAL_TOP_P,
    SamplingParams,
    is_greedy,
)

log = logging.getLogger("tandem.node")
NOT_NUMBERS = (
    "the model gave logits that are not numbers (NaN or infinite): check the weights, or use a "
    "wider dtype (--dtype float32)"
)
ALL_BANNED = (
    "logit_bias, min_tokens or the JSON schema ban every token of the vocabulary: relax them"
)
NO_GRAMMARS = "this runner was built without grammars, so it cannot keep a JSON schema"
Masks = Sequence[BoolArray | None]  # of a row: which tokens its schema allows; None: it has none


class Sampler:
    """Stateless but for `grammars`, which are a cache: what is drawn does not depend on it.

    `sample` is for any thread; those with schemas in their rows take turns at the grammars.
    """

    def __init__(self, grammars: Grammars | None = None) -> None:
        self._grammars = grammars
        self._grammars_lock = threading.Lock()

    def sample(self, logits: torch.Tensor, requests: Sequence[SampleRequest]) -> list[Sampled]:
        """One token per row of logits [R, V] (any float dtype) for R requests, in order.

        A row whose logits hold a NaN, +inf or no finite number, or whose tokens are all banned,
        gets a `Sampled` with `error`; the other rows are unaffected.
        """
        assert len(requests) == logits.shape[0]
        largest_ids, finite = _largest(logits)
        results = [Sampled(token_id=token_id) for token_id in largest_ids]
        masks: dict[int, BoolArray | None] = {}  # of the rows that are no argmax
        for row, request in enumerate(requests):
            if not finite[row]:
                results[row] = Sampled(token_id=0, error=NOT_NUMBERS)
            elif request.params.json_schema is not None:
                mask = self._allowed(request, logits.shape[1])
                if isinstance(mask, str):
                    results[row] = Sampled(token_id=0, error=mask)
                else:
                    masks[row] = mask
            elif not _is_argmax(request):
                masks[row] = None
        if masks:
            rest = list(masks)
            chosen = [requests[row] for row in rest]
            sample_rows = sample_on_cpu if logits.device.type == "cpu" else sample_on_device
            drawn = sample_rows(logits[rest].double(), chosen, list(masks.values()))
            for row, sampled in zip(rest, drawn, strict=True):
                results[row] = sampled
                self._note_end(requests[row], sampled)
        return results

    def _allowed(self, request: SampleRequest, vocab_size: int) -> BoolArray | str:
        """What the request's schema allows next, or why that cannot be said: its own failure."""
        if self._grammars is None:
            return NO_GRAMMARS
        try:
            with self._grammars_lock:
                return self._grammars.allowed(request)[:vocab_size]
        except ValueError as error:
            return str(error)
        except Exception as error:
            log.exception("no mask for a JSON schema")
            return f"the JSON schema's mask failed: {error}"

    def _note_end(self, request: SampleRequest, sampled: Sampled) -> None:
        """With its last token a request needs its matcher no more; others are forgotten in time."""
        if self._grammars is None or request.params.json_schema is None or request.key is None:
            return
        is_last = request.output_index + 1 == request.params.max_tokens
        if is_last or sampled.error is not None or sampled.token_id in request.eos_token_ids:
            with self._grammars_lock:
                self._grammars.forget(request.key)


def _largest(logits: torch.Tensor) -> tuple[list[int], list[bool]]:
    """Per row of [R, V] the lowest id of the largest logit, and whether that logit is finite.

    Both argmaxes return the first of equals and take a NaN for the largest.
    """
    if logits.device.type == "cpu":
        if logits.dtype is torch.bfloat16:
            return largest_bfloat16(logits.view(torch.int16).numpy())
        wide = logits.float() if logits.dtype is torch.float16 else logits
        rows: NDArray[np.floating] = wide.numpy()
        ids = rows.argmax(axis=1)
        return ids.tolist(), np.isfinite(rows[np.arange(len(ids)), ids]).tolist()
    indices = logits.argmax(-1)
    finite = torch.isfinite(logits.gather(-1, indices.unsqueeze(-1)).squeeze(-1))
    both = torch.stack([indices, finite.long()]).tolist()
    return both[0], [flag == 1 for flag in both[1]]


def _is_argmax(request: SampleRequest) -> bool:
    """Whether the token is that of the largest raw logit and nothing more is asked for."""
    params = request.params
    return is_greedy(params) and params.logprobs is None and not _is_adjusted(request)


def is_unfiltered(request: SampleRequest) -> bool:
    """Whether the largest logit, or the largest sum of logit over temperature and noise, wins."""
    params = request.params
    if params.logprobs is not None or params.json_schema is not None or _is_adjusted(request):
        return False
    return is_greedy(params) or _filters(params)[1:] == (NEUTRAL_TOP_K, NEUTRAL_TOP_P, -math.inf)


def _is_adjusted(request: SampleRequest) -> bool:
    params = request.params
    return bool(
        params.logit_bias
        or request.output_index < params.min_tokens
        or params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty not in (None, 1.0)
    )


def sample_on_cpu(
    rows: torch.Tensor, requests: Sequence[SampleRequest], masks: Masks | None = None
) -> list[Sampled]:
    """Rows [R, V] float64 with finite largest logits, one after the other."""
    masks = masks or [None] * len(requests)
    return [_sample_row(*each) for each in zip(rows.numpy(), requests, masks, strict=True)]


def _sample_row(logits: Float64Array, request: SampleRequest, allowed: BoolArray | None) -> Sampled:
    params = request.params
    scores = logits
    if _is_adjusted(request):
        vocab_size = len(logits)
        scores = adjust(
            logits,
            _biases(params, vocab_size),
            _banned_ids(request, vocab_size),
            _known(request.prompt_ids, vocab_size),
            _known(request.output_ids, vocab_size),
            *_penalties(params),
        )
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    if scores is not logits and scores.max() == -np.inf:
        return Sampled(token_id=0, error=ALL_BANNED)
    if is_greedy(params):
        token_id = int(scores.argmax())
    else:
        position = (request.seed, request.choice, request.output_index)
        token_id = draw(scores, *_filters(params), *position)
    return _with_logprobs(token_id, logits, params.logprobs)


def sample_on_device(
    rows: torch.Tensor, requests: Sequence[SampleRequest], masks: Masks | None = None
) -> list[Sampled]:
    """The same tokens, all rows in one go where they are; log-probabilities on the host."""
    device = rows.device
    masks = masks or [None] * len(requests)
    scores = torch.stack(
        [_scores_on_device(*each) for each in zip(rows, requests, masks, strict=True)]
    )
    greedy = torch.tensor([is_greedy(r.params) for r in requests], device=device)
    drawn = draw_reference(scores, _draws(requests, rows.shape[-1], device))
    token_ids = torch.where(greedy, scores.argmax(-1), drawn).tolist()
    banned = (scores.amax(-1) == -torch.inf).tolist()
    return [
        Sampled(token_id=0, error=ALL_BANNED)
        if all_banned
        else Sampled(token_id=token_id)
        if request.params.logprobs is None
        else _with_logprobs(token_id, row.cpu().numpy(), request.params.logprobs)
        for token_id, all_banned, row, request in zip(
            token_ids, banned, rows, requests, strict=True
        )
    ]


def _scores_on_device(
    row: torch.Tensor, request: SampleRequest, allowed: BoolArray | None
) -> torch.Tensor:
    scores = _adjusted_on_device(row, request) if _is_adjusted(request) else row
    if allowed is None:
        return scores
    return torch.where(torch.from_numpy(allowed).to(row.device), scores, -torch.inf)


def _adjusted_on_device(row: torch.Tensor, request: SampleRequest) -> torch.Tensor:
    vocab_size = row.numel()

    def ids(values: list[int] | NDArray[np.int32]) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.int64, device=row.device)

    return adjust_reference(
        row,
        _biases(request.params, vocab_size),
        ids(_banned_ids(request, vocab_size)),
        ids(_known(request.prompt_ids, vocab_size)),
        ids(_known(request.output_ids, vocab_size)),
        *_penalties(request.params),
    )


def _draws(requests: Sequence[SampleRequest], vocab_size: int, device: torch.device) -> Draws:
    filters = [_filters(request.params) for request in requests]

    def column(values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).unsqueeze(1).to(device)

    return Draws(
        temperature=column([f[0] for f in filters], torch.float64),
        top_k=column([f[1] or vocab_size for f in filters], torch.int64),
        top_p=column([f[2] for f in filters], torch.float64),
        log_min_p=column([f[3] for f in filters], torch.float64),
        seed=column([r.seed - (r.seed >> 63 << 64) for r in requests], torch.int64),
        choice=column([r.choice for r in requests], torch.int64),
        index=column([r.output_index for r in requests], torch.int64),
    )


def _filters(params: SamplingParams) -> tuple[float, int, float, float]:
    """Temperature (1 for greedy, which does not use it), top-k, top-p and the log of min-p."""
    return (
        params.temperature or NEUTRAL_TEMPERATURE,
        params.top_k or NEUTRAL_TOP_K,
        float(params.top_p or NEUTRAL_TOP_P),
        math.log(params.min_p) if params.min_p else -math.inf,
    )


def _penalties(params: SamplingParams) -> tuple[float, float, float]:
    """Repetition, presence and frequency penalty."""
    repetition = float(params.repetition_penalty or NEUTRAL_REPETITION_PENALTY)
    return repetition, float(params.presence_penalty), float(params.frequency_penalty)


def _known(token_ids: Int32Array, vocab_size: int) -> Int32Array:
    """The ids that have a logit; input from the wire is never used as an index unchecked."""
    return token_ids[(token_ids >= 0) & (token_ids < vocab_size)]


def _biases(params: SamplingParams, vocab_size: int) -> dict[int, float]:
    return {i: bias for i, bias in params.logit_bias.items() if 0 <= i < vocab_size}


def _banned_ids(request: SampleRequest, vocab_size: int) -> list[int]:
    if request.output_index >= request.params.min_tokens:
        return []
    ends = (*request.eos_token_ids, *request.params.stop_token_ids)
    return [token_id for token_id in ends if 0 <= token_id < vocab_size]


def _with_logprobs(token_id: int, logits: Float64Array, num_top: int | None) -> Sampled:
    """`num_top` None: no log-probabilities; else the token's and the `num_top` largest."""
    if num_top is None:
        return Sampled(token_id=token_id)
    logprob, top = token_logprobs(token_id, logits, num_top)
    return Sampled(token_id=token_id, logprob=logprob, top_logprobs=top)
