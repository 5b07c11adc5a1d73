"""Prefill and decode on one GPU in two processes, over CUDA IPC: what one process answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tandem.client import Client
from tandem.model_folder import load_generation_defaults
from tandem.sampling import SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=16)
EXACT = ("--device", "cuda", "--numerics", "invariant", "--dtype", "float32")


def test_two_processes_on_a_gpu_answer_what_one_answers(
    deployer: Callable[..., Any],
    runner_of: Callable[..., Any],
    alone: Callable[..., list[int]],
    demo_model: Path,
    prompts: list[list[int]],
) -> None:
    some = prompts[:48]
    eos = load_generation_defaults(demo_model).eos_token_ids
    runner = runner_of(demo_model, device="cuda", numerics="invariant", dtype="float32")
    expected = [alone(runner, prompt, GREEDY, eos) for prompt in some]
    with (
        deployer(demo_model, node_args=[*EXACT, "--transport", "cuda_ipc"]) as deployment,
        Client(deployment.cluster.gateway_address) as client,
    ):
        results = client.generate(some, params=GREEDY, progress=False)
        log = deployment.cluster.logs("prefill-0")
    assert [list(result.token_ids) for result in results] == expected
    assert "cuda_ipc" in log
