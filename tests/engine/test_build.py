"""Building a runner: named phases, what it reports, errors, and a pool that stays untouched."""

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.build import BuiltRunner, EngineOptions, build_runner, model_dtype
from engine.bundles import select_ops
from node.runner import SampleRequest, SequenceStep, StepBatch
from tandem.model_folder import load_model_config
from tandem.sampling import SamplingParams


def build(folder: Path, phases: list[str], **options: object) -> BuiltRunner:
    return build_runner(
        folder,
        load_model_config(folder),
        EngineOptions(**options),  # type: ignore[arg-type]
        on_phase=lambda name, seconds: phases.append(name),
        progress=lambda done, total: None,
    )


@pytest.fixture
def small() -> dict[str, object]:
    return {"num_pages": 40, "max_model_len": 640, "max_num_batched_tokens": 64, "max_num_seqs": 4}


def sequence(tokens: list[int], start: int, pages: list[int]) -> SequenceStep:
    nothing = np.zeros(0, np.int32)
    request = SampleRequest(SamplingParams(temperature=0.0), 0, 0, 0, nothing, nothing, ())
    return SequenceStep(np.array(tokens, np.int32), start, np.array(pages, np.int32), request)


def test_building_reports_phases_and_leaves_the_pool_empty(
    demo_model: Path, small: dict[str, object]
) -> None:
    phases: list[str] = []
    built = build(demo_model, phases, **small)
    assert phases == ["load weights", "prepare products", "allocate KV pages", "warm up"]
    assert built.ops_name == "cpu, invariant"
    assert built.runner.num_pages == built.budget.num_pages == 40
    assert built.budget.num_tokens == 640
    assert built.max_model_len == 640
    assert all(sample.seconds > 0 for sample in built.step_samples)
    pool = built.runner.pool
    assert not pool.tensor[: pool.num_pages].any()
    assert pool.tensor[pool.scratch_page].any()


def test_padding_rows_write_no_page_of_a_request(
    demo_model: Path, small: dict[str, object]
) -> None:
    runner = build(demo_model, [], **small).runner
    result = runner.run(StepBatch((sequence([5, 6, 7], 0, [3]),), padding_contexts=(20, 1)))
    written = [page for page in range(40) if runner.pool.tensor[page].any()]
    assert written == [3]
    assert len(result.sampled) == 1
    assert result.sampled[0] is not None


def test_results_belong_to_their_sequences(demo_model: Path, small: dict[str, object]) -> None:
    runner = build(demo_model, [], **small).runner
    first, second = sequence([5, 6, 7], 0, [1]), sequence([900], 0, [2])
    alone = [runner.run(StepBatch((one,))).sampled[0] for one in (first, second)]
    silent = SequenceStep(first.token_ids, 0, np.array([4], np.int32), None)
    together = runner.run(StepBatch((first, silent, second))).sampled
    assert together == (alone[0], None, alone[1])
    assert runner.run(StepBatch(())).sampled == ()


def test_a_context_beyond_the_model_is_refused(demo_model: Path, small: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="--max-model-len 5000 is beyond the model's 4096"):
        build(demo_model, [], **small | {"max_model_len": 5000})


def test_auto_dtype_is_exact_on_the_cpu_and_the_checkpoints_elsewhere(demo_model: Path) -> None:
    config = load_model_config(demo_model)
    assert model_dtype(EngineOptions(), config) == "float32"
    assert model_dtype(EngineOptions(device="cuda"), config) == "bfloat16"
    assert model_dtype(EngineOptions(dtype="bfloat16"), config) == "bfloat16"


def test_numerics_that_a_device_lacks_are_refused(demo_model: Path) -> None:
    config = load_model_config(demo_model)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert select_ops(cpu, "float32", "auto", config).name == "cpu, invariant"
    assert select_ops(gpu, "bfloat16", "auto", config).name == "gpu, fast"
    assert select_ops(cpu, "float16", "fast", config).name == "plain"
    with pytest.raises(ValueError, match=r"not float16.*--numerics fast"):
        select_ops(cpu, "float16", "invariant", config)
    with pytest.raises(ValueError, match="float64 runs on the CPU only"):
        select_ops(gpu, "float64", "auto", config)
