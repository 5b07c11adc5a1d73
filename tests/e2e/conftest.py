"""Real deployments, prompts cut from what is on this machine, and what one process answers."""

import ast
import asyncio
import pydoc_data.topics
import random
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from engine.build import EngineOptions, build_runner
from engine.runner import TorchRunner
from node.runner import SampleRequest, SequenceStep, StepBatch
from tandem.client import Client
from tandem.launch import LocalCluster
from tandem.messages.membership import ClusterStatus
from tandem.model_folder import load_generation_defaults, load_model_config
from tandem.sampling import SamplingParams
from tandem.status import query_status

NUM_PROMPTS = 204
NUM_NEW = 16
SMALL_CHUNKS = ("--max-num-batched-tokens", "96", "--max-num-seqs", "64", "--num-pages", "4000")


@dataclass(frozen=True)
class Deployment:
    """A running cluster and a client of it."""

    cluster: LocalCluster
    client: Client

    def status(self) -> ClusterStatus:
        return asyncio.run(query_status(self.cluster.coordinator_address))


@contextmanager
def deploy(
    model: Path, *, num_prefill: int = 1, num_decode: int = 1, node_args: Sequence[str] = ()
) -> Iterator[Deployment]:
    """Start everything; at the end, check that nothing of any request was left anywhere."""
    cluster = LocalCluster(
        model=str(model),
        num_prefill=num_prefill,
        num_decode=num_decode,
        node_args=(*SMALL_CHUNKS, *node_args),
        start_timeout_s=120,
    )
    with cluster:
        with Client(cluster.gateway_address) as client:
            client.ping()  # its sockets exist before the first test counts them
            deployment = Deployment(cluster, client)
            yield deployment
            assert_nothing_left(deployment)
        assert cluster.stop() == []
        for name, process in cluster.processes.items():
            assert process.exit_status == 0, cluster.explain_death(name)


def assert_nothing_left(deployment: Deployment) -> None:
    """Every node: no request, all pages free or cached. Heartbeats tell within a second or so."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        status = deployment.status()
        problems = [
            f"{node.node_id}: {node.load}"
            for node in status.nodes
            if node.load is None
            or node.load.num_requests
            or node.load.pages.free + node.load.pages.cached != node.num_pages
        ]
        if not problems and status.num_live_requests == 0:
            return
        time.sleep(0.1)
    pytest.fail(f"left behind: {problems}, live requests {status.num_live_requests}")


@pytest.fixture(scope="session")
def prompts(demo_model: Path) -> list[list[int]]:
    """Token ids of code and prose of many lengths, cut at test time."""
    rng = random.Random(20)
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    texts = list(standard_library_definitions()) + list(pydoc_data.topics.topics.values())
    chosen = []
    for text in rng.sample(texts, NUM_PROMPTS):
        ids = tokenizer.encode(text)
        start = rng.randrange(max(1, len(ids) // 2))
        chosen.append(ids[start : start + rng.choice([5, 17, 40, 96, 97, 180, 300])] or ids[:5])
    return chosen


def standard_library_definitions() -> Iterator[str]:
    """Functions and classes of some of the running Python's modules."""
    folder = Path(sysconfig.get_path("stdlib"))
    for name in (
        "argparse",
        "ast",
        "calendar",
        "collections/__init__",
        "difflib",
        "heapq",
        "json/decoder",
    ):
        source = (folder / f"{name}.py").read_text()
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield ast.get_source_segment(source, node) or ""


def make_runner(model: Path, **options: object) -> TorchRunner:
    """One process's runner over a model folder."""
    built = build_runner(
        model,
        load_model_config(model),
        EngineOptions(num_pages=600, max_num_batched_tokens=512, **options),  # type: ignore[arg-type]
        on_phase=lambda name, seconds: None,
        progress=lambda done, total: None,
    )
    return built.runner


def generate_alone(
    runner: TorchRunner,
    prompt: Sequence[int],
    params: SamplingParams,
    eos: tuple[int, ...],
    seed: int = 0,
    choice: int = 0,
) -> list[int]:
    """The specification: the whole prompt in one step, then one token per step, nothing else."""
    num_total = len(prompt) + (params.max_tokens or 0)
    table = np.arange(-(-num_total // runner.layout.page_size), dtype=np.int32)
    prompt_ids = np.array(prompt, np.int32)
    output: list[int] = []
    todo, start = prompt_ids, 0
    while len(output) < (params.max_tokens or 0):
        request = SampleRequest(
            params, seed, choice, len(output), prompt_ids, np.array(output, np.int32), eos
        )
        result = runner.run(StepBatch((SequenceStep(todo, start, table, request),)))
        sampled = result.sampled[0]
        assert sampled is not None and sampled.error is None
        output.append(sampled.token_id)
        if sampled.token_id in eos and not params.ignore_eos:
            break
        start += len(todo)
        todo = np.array(output[-1:], np.int32)
    return output


GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_NEW)


@pytest.fixture(scope="session")
def one_process(demo_model: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy answers of a single process, one request at a time."""
    runner = make_runner(demo_model)
    eos = load_generation_defaults(demo_model).eos_token_ids
    return [generate_alone(runner, prompt, GREEDY, eos) for prompt in prompts]


@pytest.fixture(scope="session")
def deployer() -> Callable[..., object]:
    """`deploy`, for tests that start their own."""
    return deploy


@pytest.fixture(scope="session")
def alone() -> Callable[..., list[int]]:
    """`generate_alone`."""
    return generate_alone


@pytest.fixture(scope="session")
def runner_of() -> Callable[..., TorchRunner]:
    """`make_runner`."""
    return make_runner


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Nodes and this process share two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
