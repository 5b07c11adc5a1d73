"""Answers that keep a JSON schema in a deployment: those of one process, through a death too."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.build import EngineOptions, build_runner
from engine.grammar import Grammars
from engine.runner import TorchRunner
from tandem.async_client import AsyncClient
from tandem.client import Client
from tandem.errors import InvalidRequestError
from tandem.launch import LocalCluster
from tandem.model_folder import load_generation_defaults, load_model_config
from tandem.sampling import SamplingParams
from tests.engine.schemas import ALL, breach, text_of

SEED = 5
NODE_ARGS = ("--max-num-batched-tokens", "96", "--max-num-seqs", "64", "--num-pages", "1000")
LONG = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 9},
    "minItems": 60,
    "maxItems": 60,
}
pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def cluster(demo_model: Path) -> Iterator[LocalCluster]:
    """One of its decode nodes is killed by the last test."""
    with LocalCluster(
        model=str(demo_model), num_decode=2, node_args=NODE_ARGS, start_timeout_s=120
    ) as running:
        yield running
        assert running.stop() == []
        for name, process in running.processes.items():
            assert process.exit_status == 0 or name == "decode-0", running.explain_death(name)


@pytest.fixture(scope="module")
def runner(demo_model: Path) -> TorchRunner:
    config = load_model_config(demo_model)
    eos = load_generation_defaults(demo_model).eos_token_ids
    return build_runner(
        demo_model,
        config,
        EngineOptions(num_pages=100, max_model_len=1024),
        on_phase=lambda name, seconds: None,
        progress=lambda done, total: None,
        grammars=Grammars(demo_model, config.vocab_size, eos),
    ).runner


def asked(schema: dict[str, Any] | None, **changes: Any) -> SamplingParams:
    text = None if schema is None else text_of(schema)
    return SamplingParams(
        **{"max_tokens": 150, "temperature": 0.0, "seed": SEED, "json_schema": text, **changes}
    )


def generate(
    address: str, prompts: Sequence[list[int]], wanted: Sequence[SamplingParams]
) -> list[Any]:
    """All at once."""

    async def run() -> list[Any]:
        async with AsyncClient(address) as client:
            tasks = [
                client.generate([prompt], params=params, progress=False)
                for prompt, params in zip(prompts, wanted, strict=True)
            ]
            return [answers[0] for answers in await asyncio.gather(*tasks)]

    return asyncio.run(run())


def test_answers_keep_their_schemas_and_are_those_of_one_process(
    cluster: LocalCluster,
    runner: TorchRunner,
    prompts: list[list[int]],
    alone: Callable[..., list[int]],
    demo_model: Path,
) -> None:
    """Beside plain requests, which answer as they always do."""
    schemas = [*ALL.values(), None]
    wanted = [
        asked(schema, max_tokens=150 if schema else 40, **more)
        for more in ({}, {"temperature": 0.8, "top_p": 0.95})
        for schema in schemas
    ]
    texts = [p[:40] for p in prompts[: len(wanted)]]
    answers = generate(cluster.gateway_address, texts, wanted)
    eos = load_generation_defaults(demo_model).eos_token_ids
    for prompt, params, result in zip(texts, wanted, answers, strict=True):
        assert list(result.token_ids) == alone(runner, prompt, params, eos, seed=SEED)
        if params.json_schema is not None:
            assert result.finish_reason == "stop"
            assert breach(json.loads(result.text), json.loads(params.json_schema)) is None


def test_max_tokens_and_stop_strings_cut_as_they_do_elsewhere(cluster: LocalCluster) -> None:
    wanted = [asked(LONG, max_tokens=9), asked(LONG, stop=(",",)), asked(LONG, logprobs=2)]
    short, stopped, whole = generate(cluster.gateway_address, [[5, 6, 7]] * 3, wanted)
    assert (short.finish_reason, len(short.token_ids)) == ("length", 9)
    assert (stopped.finish_reason, stopped.stop_string) == ("stop", ",")
    assert stopped.text == whole.text.split(",")[0]
    assert len(whole.logprobs) == len(whole.token_ids)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"json_schema": '{"type": "thing"}'}, "thing"),
        ({"json_schema": '{"type": "string", "pattern": "(a"}'}, "unclosed"),
        ({"ignore_eos": True}, "ignore_eos"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    cluster: LocalCluster, changes: dict[str, Any], words: str
) -> None:
    with (
        Client(cluster.gateway_address) as client,
        pytest.raises(InvalidRequestError, match=words),
    ):
        list(client.submit(prompt_ids=[5, 6], params=asked(ALL["string"], **changes)))


def test_a_killed_decode_node_changes_no_token(
    cluster: LocalCluster,
    runner: TorchRunner,
    prompts: list[list[int]],
    alone: Callable[..., list[int]],
    demo_model: Path,
) -> None:
    """Its requests go on where it stopped, on a node that has never seen them. Both have some of
    six: the coordinator sends each to the one with fewer."""
    params = asked(LONG, max_tokens=200, temperature=0.9, top_p=0.95)
    texts = [p[:20] for p in prompts[:6]]

    async def run() -> list[Any]:
        async with AsyncClient(cluster.gateway_address) as client:
            streams = [await client.submit(prompt_ids=p, params=params) for p in texts]
            readers = [asyncio.create_task(stream.finish()) for stream in streams]
            async with asyncio.timeout(30):
                while min(len(s.received_ids) for s in streams) < 10:  # noqa: ASYNC110  no event
                    await asyncio.sleep(0.002)
            cluster.kill("decode-0")
            return list(await asyncio.gather(*readers))

    answers = asyncio.run(run())
    eos = load_generation_defaults(demo_model).eos_token_ids
    assert max(each.timeline.num_attempts for each in answers) > 1
    for prompt, result in zip(texts, answers, strict=True):
        assert list(result.token_ids) == alone(runner, prompt, params, eos, seed=SEED)
        assert breach(json.loads(result.text), LONG) is None
