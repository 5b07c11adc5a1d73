"""Every family through separate processes: prefilled here, decoded there, token for token."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tandem.client import Client
from tandem.launch import LocalCluster
from tandem.sampling import SamplingParams

NUM_NEW = 12
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_NEW, ignore_eos=True)
SMALL = ("--num-pages", "200", "--max-num-batched-tokens", "32", "--max-num-seqs", "8")


@pytest.mark.timeout(90)
@pytest.mark.parametrize("name", ["llama2", "llama3", "mistral", "qwen2.5", "qwen3"])
def test_two_nodes_answer_what_one_process_answers(
    checkpoint: Callable[[str], Any],
    generate: Callable[..., list[list[int]]],
    demo_model: Path,
    name: str,
) -> None:
    model = checkpoint(name)
    for file in demo_model.glob("tokenizer*"):
        shutil.copy(file, model.folder)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(1, 512, n).astype(np.int32) for n in (3, 16, 50, 77, 120)]
    expected = generate(model.runner(), prompts, NUM_NEW, chunk=200)
    cluster = LocalCluster(model=str(model.folder), node_args=SMALL, start_timeout_s=60)
    with cluster, Client(cluster.gateway_address) as client:
        results = client.generate([p.tolist() for p in prompts], params=GREEDY, progress=False)
    assert [list(result.token_ids) for result in results] == expected
    assert len({tuple(answer) for answer in expected}) == len(prompts)
