"""Hidden states, logprobs and classes against transformers; bit for bit among our own runs."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from engine.build import EngineOptions, build_runner
from engine.evaluation import score_on_cpu, score_on_device
from engine.runner import TorchRunner
from node.runner import ChunkQuestion, SampleRequest, SequenceStep, StepBatch
from prefill_node.questions import answer_of, question_of
from tandem.frames import TokenIds
from tandem.messages.common import SlaTargets
from tandem.messages.evaluation import EvaluationDone, EvaluationSpec
from tandem.model_folder import load_model_config
from tandem.sampling import SamplingParams

FAMILIES = ["llama3", "mistral", "qwen2", "qwen3"]
PAGES = np.random.default_rng(1).permutation(64).astype(np.int32)[:8]
BORDERS = ([0, 120], [0, 37, 50, 64, 118, 119, 120])
OTHER = np.random.default_rng(5).integers(0, 512, 60).astype(np.int32)
OTHER_PAGES = np.setdiff1d(np.arange(64, dtype=np.int32), PAGES)[:8]
LABELS = 3


def spec_of(prompt: NDArray[np.int32], task: str, **fields: Any) -> EvaluationSpec:
    return EvaluationSpec(
        request_id=bytes(16),
        attempt=1,
        task=task,
        prompt_ids=TokenIds(prompt),
        tenant="default",
        priority=0,
        targets=SlaTargets(sla_class="s", ttft_ms=1e3, tpot_ms=1e3),
        deadline_s=None,
        sequence=0,
        **fields,
    )


def evaluate(
    runner: TorchRunner, spec: EvaluationSpec, borders: list[int], company: bool = False
) -> EvaluationDone:
    """In chunks; with a prompt that samples and a padding row beside each."""
    ids, parts = spec.prompt_ids.array, []
    for start, end in pairwise(borders):
        question = question_of(spec, start, end)
        steps = [SequenceStep(ids[start:end], start, PAGES, None, question)]
        padding: tuple[int, ...] = ()
        if company:
            nothing = OTHER[:0]
            sample = SampleRequest(SamplingParams(temperature=0.0), 0, 0, 0, nothing, nothing, ())
            steps.insert(0, SequenceStep(OTHER[:40], 0, OTHER_PAGES, sample))
            padding = (33, 7)
        results = runner.run(StepBatch(tuple(steps), padding)).sampled
        if question is None:
            assert results[-1] is None
            continue
        assert results[-1] is not None
        assert results[-1].values is not None
        parts.append(results[-1].values)
    return answer_of(spec, parts)


def floats(done: EvaluationDone, field: str = "vector") -> NDArray[np.float32]:
    return np.frombuffer(getattr(done, field).data, "<f4")


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_equal_transformers(
    checkpoint: Callable[[str], Any], prompt: NDArray[np.int32], family: str
) -> None:
    folder = checkpoint(family)
    runner = folder.runner()
    with torch.inference_mode():
        given = torch.from_numpy(prompt[None].astype(np.int64))
        theirs = folder.oracle(torch.float32)(given, output_hidden_states=True)
    states = theirs.hidden_states[-1][0].numpy()
    logprobs = torch.log_softmax(theirs.logits[0], -1)
    for borders in BORDERS:
        last = floats(evaluate(runner, spec_of(prompt, "embed"), borders))
        np.testing.assert_allclose(last, states[-1], rtol=0, atol=5e-5)
        mean = floats(evaluate(runner, spec_of(prompt, "embed", pooling="mean"), borders))
        np.testing.assert_allclose(mean, states.mean(0), rtol=0, atol=5e-5)
        done = evaluate(runner, spec_of(prompt, "score", num_top=4, first_scored=30), borders)
        expected = logprobs[29:119].gather(1, given[0, 30:, None])[:, 0]
        np.testing.assert_allclose(floats(done, "logprobs"), expected, rtol=0, atol=1e-4)
        top, top_ids = logprobs[29:119].topk(4)
        shown = floats(done, "top_logprobs").reshape(90, 4)
        np.testing.assert_allclose(shown, top, rtol=0, atol=1e-4)
        is_clear = (top[:, :-1] - top[:, 1:] > 1e-3).all(1)
        assert is_clear.sum() > 60, "there is too little to compare"
        ours = done.top_ids.array.reshape(90, 4)
        assert (ours[is_clear.numpy()] == top_ids[is_clear].numpy()).all()


@pytest.mark.parametrize("family", ["llama3", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunks_and_company_change_no_bits(
    checkpoint: Callable[[str], Any], prompt: NDArray[np.int32], family: str, dtype: str
) -> None:
    runner = checkpoint(family).runner(dtype=dtype)
    specs = [
        spec_of(prompt, "embed"),
        spec_of(prompt, "embed", pooling="mean"),
        spec_of(prompt, "score", num_top=3),
    ]
    for spec in specs:
        whole = evaluate(runner, spec, [0, 120])
        assert evaluate(runner, spec, [0, 1, 2, 37, 50, 64, 118, 119, 120], company=True) == whole
        assert evaluate(runner, spec, [0, 63, 120]) == whole


def test_a_prompt_tokens_logprob_is_the_drawn_tokens(
    checkpoint: Callable[[str], Any], prompt: NDArray[np.int32]
) -> None:
    runner = checkpoint("llama3").runner()
    params = SamplingParams(temperature=0.0, logprobs=2)
    sample = SampleRequest(params, 0, 0, 0, prompt, prompt[:0], ())
    drawn = runner.run(StepBatch((SequenceStep(prompt, 0, PAGES, sample),))).sampled[0]
    assert drawn is not None
    longer = np.append(prompt, np.int32(drawn.token_id))
    spec = spec_of(longer, "score", first_scored=120, num_top=2)
    done = evaluate(runner, spec, [0, 64, 121])
    assert floats(done, "logprobs").tolist() == [np.float32(drawn.logprob)]
    told = zip(done.top_ids.array.tolist(), floats(done, "top_logprobs").tolist(), strict=True)
    assert list(told) == [(i, np.float32(p)) for i, p in drawn.top_logprobs]


def classifier(folder: Path, name: str) -> Any:
    """A random checkpoint with a classification head."""
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    config = getattr(transformers, f"{name}Config")(
        **sizes, **heads, num_labels=LABELS, pad_token_id=0, max_position_embeddings=512
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0 if parameter.ndim > 1 else 1.0, 0.15)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", ["Llama", "Qwen2"])
def test_classes_equal_transformers(tmp_path: Path, prompt: NDArray[np.int32], name: str) -> None:
    model = classifier(tmp_path, name)
    config = load_model_config(tmp_path)
    assert config.num_labels == LABELS
    runner = build_runner(
        tmp_path,
        config,
        EngineOptions(num_pages=64, max_num_batched_tokens=64, max_num_seqs=4),
        on_phase=lambda phase, seconds: None,
        progress=lambda done, total: None,
    ).runner
    assert not runner.generates
    with torch.inference_mode():
        expected = model(torch.from_numpy(prompt[None].astype(np.int64))).logits[0].numpy()
    whole = evaluate(runner, spec_of(prompt, "classify"), [0, 120])
    np.testing.assert_allclose(floats(whole), expected, rtol=0, atol=5e-5)
    assert evaluate(runner, spec_of(prompt, "classify"), [0, 7, 90, 119, 120]) == whole


def test_states_that_are_no_numbers_are_an_error(
    checkpoint: Callable[[str], Any], prompt: NDArray[np.int32]
) -> None:
    runner = checkpoint("llama3").runner()
    runner.pool.tensor[PAGES[0]] = torch.nan
    questions = [
        ChunkQuestion("last"),
        ChunkQuestion("sum"),
        ChunkQuestion("logprobs", next_ids=prompt[17:20]),
    ]
    for question in questions:
        step = SequenceStep(prompt[16:20], 16, PAGES, None, question)
        result = runner.run(StepBatch((step,))).sampled[0]
        assert result is not None
        assert result.values is None
        assert "not numbers" in (result.error or "")


def test_a_devices_logprobs_are_those_of_the_cpu() -> None:
    logits = torch.randn(9, 4096, generator=torch.Generator().manual_seed(0)) * 5
    next_ids = np.random.default_rng(0).integers(0, 4096, 9).astype(np.int32)
    exact, ours = score_on_cpu(logits, next_ids, 5), score_on_device(logits, next_ids, 5)
    np.testing.assert_allclose(ours[0], exact[0], rtol=0, atol=1e-5)
    assert (ours[1] == exact[1]).all()
    np.testing.assert_allclose(ours[2], exact[2], rtol=0, atol=1e-5)
    assert [part.dtype for part in ours] == [part.dtype for part in exact]
