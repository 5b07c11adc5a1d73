"""OpenAI's own client against one real deployment: it says what our client says over ZeroMQ."""

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from tandem.model_folder import load_generation_defaults
from tandem.sampling import SamplingParams

pytestmark = pytest.mark.timeout(150)  # the first test starts the deployment
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CODE = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n"
ASK = "write a function that adds two numbers"
CHAT = [{"role": "user", "content": ASK}]


@pytest.fixture(scope="module")
def deployment(deployer: Callable[..., Any], demo_model: Path) -> Iterator[Any]:
    with deployer(demo_model, node_args=["--max-model-len", "1024"]) as running:
        yield running


@pytest.fixture
def sdk(deployment: Any) -> Iterator[openai.OpenAI]:
    address = f"{deployment.cluster.http_address}/v1"
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
        yield client


def records(deployment: Any, query: str) -> list[dict[str, Any]]:
    """Requests that ended lately, as operators see them."""
    address = f"{deployment.cluster.dashboard_address}/api/requests?{query}"
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "it does not happen within 15 s"
        time.sleep(0.05)


def narrow(logprob: float) -> float:
    """As it comes from a prompt: 32 bits travel for each token."""
    return float(np.float32(logprob))


def test_regression_11_choices_and_lists_of_prompts_are_what_one_process_says(
    deployment: Any,
    sdk: openai.OpenAI,
    demo_model: Path,
    prompts: list[list[int]],
    alone: Callable[..., list[int]],
    runner_of: Callable[..., Any],
) -> None:
    chosen = [prompts[0][:5], prompts[1][:40], prompts[2][:130]]
    chosen = [prompt for prompt in chosen if prompt]
    answer = sdk.completions.create(
        model="demo",
        prompt=chosen,
        n=3,
        seed=-7,
        temperature=1.1,
        max_tokens=12,
        extra_body={"return_token_ids": True, "top_k": 50},
    )
    params = SamplingParams(temperature=1.1, top_k=50, seed=2**64 - 7, max_tokens=12)
    eos = load_generation_defaults(demo_model).eos_token_ids
    runner = runner_of(demo_model)
    assert [choice.index for choice in answer.choices] == list(range(9))
    for number, choice in enumerate(answer.choices):
        prompt, which = chosen[number // 3], number % 3
        over_zmq = deployment.client.submit(prompt_ids=prompt, params=params, choice=which).finish()
        assert choice.text == over_zmq.text
        ids = choice.model_extra["token_ids"]
        assert ids == list(over_zmq.token_ids)
        # The model's own default, which the gateway fills in.
        full = SamplingParams(temperature=1.1, top_k=50, top_p=0.95, seed=2**64 - 7, max_tokens=12)
        assert ids == alone(runner, prompt, full, eos, 2**64 - 7, which)
    assert answer.usage.prompt_tokens == sum(map(len, chosen))
    assert len({choice.text for choice in answer.choices[6:]}) > 1


def test_regression_11_echo_with_logprobs_is_what_generating_said(
    deployment: Any, sdk: openai.OpenAI, prompts: list[list[int]]
) -> None:
    prompt = max(prompts, key=len)[:150]
    params = SamplingParams(temperature=0.0, max_tokens=8, logprobs=2, ignore_eos=True)
    (said,) = deployment.client.generate([prompt], params=params, progress=False)
    both = [*prompt, *said.token_ids]
    for max_tokens in (0, 1):
        answer = sdk.completions.create(
            model="demo",
            prompt=[both, [prompt[0]]],
            echo=True,
            logprobs=2,
            max_tokens=max_tokens,
            temperature=0,
        )
        told = answer.choices[0].logprobs
        assert told.token_logprobs[0] is None
        scored = told.token_logprobs[len(prompt) : len(both)]
        assert scored == [narrow(each.logprob) for each in said.logprobs]
        best = [max(top.values()) for top in told.top_logprobs[len(prompt) : len(both)]]
        assert best == [narrow(each.top[0][1]) for each in said.logprobs]
        assert len(told.tokens) == len(both) + max_tokens
        assert answer.choices[1].logprobs.token_logprobs[0] is None


def test_regression_11_stop_strings_across_token_boundaries(
    deployment: Any, sdk: openai.OpenAI
) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    free = deployment.client.submit(CODE, params=params).finish()
    middle = len(free.text) // 2
    for stop in (free.text[middle : middle + 7], free.text[middle + 1 : middle + 3]):
        own = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, stop=(stop,))
        expected = deployment.client.submit(CODE, params=own).finish()
        asked = {"model": "demo", "prompt": CODE, "stop": stop, "temperature": 0, "max_tokens": 40}
        (choice,) = sdk.completions.create(**asked, extra_body={"ignore_eos": True}).choices
        assert choice.text == expected.text == free.text[: free.text.index(stop)]
        assert (choice.finish_reason, choice.model_extra["stop_reason"]) == ("stop", stop)
        body = {"ignore_eos": True, "include_stop_str_in_output": True}
        pieces = sdk.completions.create(**asked, stream=True, extra_body=body)
        assert "".join(chunk.choices[0].text for chunk in pieces) == expected.text + stop


def test_streams_say_what_whole_answers_say(deployment: Any, sdk: openai.OpenAI) -> None:
    asked = {"model": "demo", "messages": CHAT, "seed": 11, "max_tokens": 20, "n": 2}
    whole = sdk.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    texts, reasons, logprobs = ["", ""], [[], []], [[], []]
    usage = None
    options = {"include_usage": True}
    for chunk in sdk.chat.completions.create(
        **asked, logprobs=True, top_logprobs=3, stream=True, stream_options=options
    ):
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] += [choice.finish_reason] if choice.finish_reason else []
            logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [[choice.finish_reason] for choice in whole.choices]
    assert logprobs == [choice.logprobs.content for choice in whole.choices]
    assert usage.completion_tokens == whole.usage.completion_tokens
    params = SamplingParams(seed=11, max_tokens=20)
    over_zmq = [
        deployment.client.submit(chat=CHAT, params=params, choice=choice).finish()
        for choice in range(2)
    ]
    assert [result.text for result in over_zmq] == texts
    assert whole.usage.prompt_tokens == over_zmq[0].usage.num_prompt_tokens


def test_the_async_client_with_many_at_once(deployment: Any) -> None:
    async def run() -> list[str]:
        address = f"{deployment.cluster.http_address}/v1"
        async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as client:

            async def one(seed: int) -> str:
                stream = await client.chat.completions.create(
                    model="demo", messages=CHAT, seed=seed, max_tokens=12, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return list(await asyncio.gather(*(one(seed) for seed in range(8))))

    texts = asyncio.run(run())
    for seed in (0, 7):
        params = SamplingParams(seed=seed, max_tokens=12)
        assert deployment.client.submit(chat=CHAT, params=params).finish().text == texts[seed]
    assert len(set(texts)) > 1


def test_choices_share_the_prefill_of_their_prompt(deployment: Any, sdk: openai.OpenAI) -> None:
    prompt = "import os\n" * 40 + "# a prompt that nobody sent before\n"
    answer = sdk.completions.create(model="demo", prompt=prompt, n=4, max_tokens=2)
    num_tokens = answer.usage.prompt_tokens
    assert num_tokens > 100
    query = "limit=50"

    def own() -> list[int]:
        found = [r for r in records(deployment, query) if r["num_prompt_tokens"] == num_tokens]
        return sorted(r["num_cached_tokens"] for r in found)

    until(lambda: len(own()) == 4)
    first, *others = own()
    assert first < 16
    assert min(others) >= num_tokens - 16


def test_answers_that_keep_a_schema_and_tools(sdk: openai.OpenAI) -> None:
    schema = {"enum": ["red", "green", "blue"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema}}
    (choice,) = sdk.chat.completions.create(
        model="demo", messages=CHAT, response_format=wanted, seed=1, max_tokens=200
    ).choices
    assert json.loads(choice.message.content) in schema["enum"]
    function = {"name": "paint", "parameters": {"properties": {}, "additionalProperties": False}}
    tools = [{"type": "function", "function": function}]
    named = {"type": "function", "function": {"name": "paint"}}
    for tool_choice, reason in (("required", "tool_calls"), (named, "stop")):
        (choice,) = sdk.chat.completions.create(
            model="demo",
            messages=CHAT,
            tools=tools,
            tool_choice=tool_choice,
            seed=1,
            max_tokens=900,  # the grammar allows up to 40 blanks in each of ten places
        ).choices
        assert choice.finish_reason == reason, choice.message
        (call,) = choice.message.tool_calls
        assert call.function.name == "paint"
        assert json.loads(call.function.arguments) == {}


def test_errors_are_the_clients_own(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        sdk.completions.create(model="other", prompt="a")
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.completions.create(model="demo", prompt="a", temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.completions.create(model="demo", prompt="a " * 3000, stream=True)
    assert caught.value.code == "context_too_long"
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(
            model="demo", messages=CHAT, extra_body={"sla_class": "no such class"}
        )
    assert caught.value.code == "unknown_sla_class"


def test_who_closes_a_stream_cancels_it(deployment: Any, sdk: openai.OpenAI) -> None:
    num_before = len(records(deployment, "outcome=cancelled&limit=50"))
    stream = sdk.completions.create(
        model="demo", prompt=CODE, n=2, max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    until(lambda: len(records(deployment, "outcome=cancelled&limit=50")) > num_before)
    until(lambda: deployment.status().num_live_requests == 0)


@pytest.mark.parametrize("name", ["openai_sdk.py", "openai_async.py", "curl.sh"])
def test_examples_over_http_run(deployment: Any, name: str) -> None:
    program = ["bash"] if name.endswith(".sh") else [sys.executable]
    command = [*program, EXAMPLES / name, deployment.cluster.http_address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    said = {
        "openai_sdk.py": ("completion_tokens=20", "colour", "weather"),
        "openai_async.py": ("sort a list: ", " ms "),
        "curl.sh": ('"max_model_len"', "data: [DONE]", '"token_logprobs":[null,'),
    }
    assert all(words in done.stdout for words in said[name]), done.stdout
