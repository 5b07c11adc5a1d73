"""What an evaluation asks of a prompt's chunks, and the answer that they make together. Pure."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from node.runner import SUM_BITS, ChunkQuestion, ChunkValues, Int32Array
from node.state import NodeIdentity
from tandem.frames import Blob, TokenIds
from tandem.messages.common import ErrorCode
from tandem.messages.evaluation import MAX_LOGPROBS, EvaluationDone, EvaluationSpec
from tandem.messages.serving import RequestSpec
from tandem.sampling import SamplingParams

NOTHING = np.zeros(0, np.float32)
NO_IDS = np.zeros(0, np.int32)


def explain_invalid(spec: EvaluationSpec, identity: NodeIdentity) -> str | None:
    """What is wrong with an evaluation for any node like this; the gateway has checked it."""
    ids, model = spec.prompt_ids.array, identity.model
    if not 1 <= len(ids) <= model.max_model_len:
        return f"{len(ids)} tokens, and the context is from 1 to {model.max_model_len}"
    if int(ids.min()) < 0 or int(ids.max()) >= model.vocab_size:
        return f"token ids must be from 0 to {model.vocab_size - 1}"
    if (spec.task == "classify" and not model.num_labels) or (
        spec.task == "score" and model.num_labels
    ):
        return f"this model has {model.num_labels} classes, which does not fit {spec.task}"
    if spec.task != "score":
        return None
    if spec.first_scored < 1 or spec.num_top > model.vocab_size:
        return "tokens from the second on have logprobs, and as many alternatives as there are ids"
    if spec.num_scored * (1 + spec.num_top) > MAX_LOGPROBS:
        return f"more than {MAX_LOGPROBS} logprobs do not fit into an answer"
    return None


def num_cacheable(spec: EvaluationSpec) -> int:
    """How many of its first tokens need not be computed where their KV is there already."""
    num_tokens = len(spec.prompt_ids)
    if spec.task == "score":
        return min(spec.first_scored, num_tokens) - 1
    return 0 if spec.task == "embed" and spec.pooling == "mean" else num_tokens - 1


def question_of(spec: EvaluationSpec, start: int, end: int) -> ChunkQuestion | None:
    """What is asked about the tokens `start` to `end`; token i is scored by the row of i - 1."""
    num_tokens = len(spec.prompt_ids)
    if spec.task == "score":
        first, stop = max(start + 1, spec.first_scored), min(end + 1, num_tokens)
        if first >= stop:
            return None
        next_ids = spec.prompt_ids.array[first:stop]
        return ChunkQuestion("logprobs", first - 1 - start, next_ids, spec.num_top)
    if spec.task == "embed" and spec.pooling == "mean":
        return ChunkQuestion("sum")
    if end < num_tokens:
        return None
    return ChunkQuestion("last" if spec.task == "embed" else "classes")


def answer_of(spec: EvaluationSpec, parts: list[ChunkValues]) -> EvaluationDone:
    """The answer from what its chunks gave, in their order."""
    if spec.task == "score":
        whole = [ChunkValues(), *parts]  # there may be no token to score
        return _done(
            spec,
            logprobs=np.concatenate([part.logprobs for part in whole]),
            top_ids=np.concatenate([part.top_ids for part in whole]),
            top_logprobs=np.concatenate([part.top_logprobs for part in whole]),
        )
    vectors = [part.vector for part in parts if part.vector is not None]
    if spec.task == "embed" and spec.pooling == "mean":
        total = np.sum(np.stack(vectors), axis=0)
        mean = total / 2.0**SUM_BITS / len(spec.prompt_ids)
        return _done(spec, vector=mean)
    return _done(spec, vector=vectors[-1].astype(np.float32))


def failed(spec: EvaluationSpec, code: ErrorCode, message: str) -> EvaluationDone:
    """Why there is no answer."""
    return msgspec.structs.replace(_done(spec), code=code, message=message)


def _done(
    spec: EvaluationSpec,
    *,
    vector: NDArray[np.floating] = NOTHING,
    logprobs: NDArray[np.float32] = NOTHING,
    top_ids: Int32Array = NO_IDS,
    top_logprobs: NDArray[np.float32] = NOTHING,
) -> EvaluationDone:
    return EvaluationDone(
        request_id=spec.request_id,
        attempt=spec.attempt,
        vector=_floats(vector),
        logprobs=_floats(logprobs),
        top_ids=TokenIds(top_ids),
        top_logprobs=_floats(top_logprobs),
    )


def _floats(array: NDArray[np.floating]) -> Blob:
    return Blob(array.astype("<f4").tobytes())


def as_request(spec: EvaluationSpec) -> RequestSpec:
    """The prompt of a request with one token of answer, which is never drawn."""
    return RequestSpec(
        request_id=spec.request_id,
        attempt=spec.attempt,
        prompt_ids=spec.prompt_ids,
        output_ids=TokenIds(),
        params=SamplingParams(max_tokens=1),
        seed=0,
        choice=0,
        tenant=spec.tenant,
        priority=spec.priority,
        targets=spec.targets,
        deadline_s=spec.deadline_s,
        sequence=spec.sequence,
        waited_s=spec.waited_s,
        tenant_weight=spec.tenant_weight,
    )
