"""Load from flags to figures: lengths, arrivals, prompts, goodput, saved runs, an HTTP server."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from loadgen.bench import make_load, run
from loadgen.bench_flags import make_parser
from loadgen.drive import UNFINISHED, Driven, Fate, drive
from loadgen.goodput import Targets, parse_targets
from loadgen.http_session import open_http_target
from loadgen.lengths import parse_lengths
from loadgen.measure import RequestSample
from loadgen.saved import compare, load, save
from loadgen.summary import summarise
from loadgen.target import Prompted
from loadgen.traces import Trace, TraceRequest
from loadgen.traffic import Due, Shape, make_traffic
from tandem.errors import OverloadedError, TandemError, UnavailableError
from tandem.messages.common import Timeline

SAMPLE = RequestSample(3, 0.5, (0.1, 0.1), 0.7, False, "r", Timeline(received_unix_s=0.0))


def test_lengths_are_what_their_words_say() -> None:
    assert parse_lengths("7").sample(3, 1) == [7, 7, 7]
    drawn = parse_lengths("uniform:10:20").sample(500, 1)
    assert min(drawn) >= 10 and max(drawn) <= 20 and len(set(drawn)) == 11
    assert max(parse_lengths("lognormal:100:2:300").sample(500, 1)) == 300
    assert min(parse_lengths("normal:2:50").sample(500, 1)) == 1
    assert parse_lengths("normal:9:3").sample(5, 1) == parse_lengths("normal:9:3").sample(5, 1)
    for wrong in ("", "0", "x", "uniform:5", "uniform:9:3", "lognormal:9:1:2", "nan", "1e99"):
        with pytest.raises(ValueError, match="give N, uniform"):
            parse_lengths(wrong)


def test_goodput_is_counted_as_others_count_it() -> None:
    targets = parse_targets(["ttft:500", "tpot:100", "e2el:700"])
    assert targets.is_good(SAMPLE)
    assert not parse_targets(["ttft:499"]).is_good(SAMPLE)
    assert not parse_targets(["tpot:99"]).is_good(SAMPLE)
    assert not parse_targets(["e2el:699"]).is_good(SAMPLE)
    one = RequestSample(1, 0.5, (), 9.0, False, "r", Timeline(received_unix_s=0.0))
    assert parse_targets(["tpot:1"]).is_good(one)  # a single token has no time per token
    for wrong in ("ttft", "ttft:x", "ttft:-1", "speed:3"):
        with pytest.raises(ValueError, match="is not NAME:MS"):
            parse_targets([wrong])


def test_shared_blocks_of_a_trace_are_shared_ids() -> None:
    requests = (TraceRequest(0.0, 5, 2, (1, 2)), TraceRequest(3.0, 6, 2, (1, 9)))
    trace = Trace("t", requests, has_times=True, block_tokens=2)
    shape = Shape(arrivals="trace", num_requests=2, rate_per_s=None)
    first, second = make_traffic(shape, trace, seed=1)
    assert first.request.prompt_ids[:2] == second.request.prompt_ids[:2]
    assert first.request.prompt_ids[2:4] != second.request.prompt_ids[2:4]
    assert [len(each.request.prompt_ids) for each in (first, second)] == [5, 6]
    assert second.at_s - first.at_s == pytest.approx(3.0)


def test_lengths_fit_the_context() -> None:
    flags = "--input-len 100 --output-len 100 --max-model-len 150 --divide-by 0.9"
    rate = "--num-prompts 3 --arrivals constant --request-rate 2"
    args = make_parser().parse_args(f"{flags} {rate}".split())
    due = make_load(args)
    assert [each.at_s for each in due] == [0.0, 0.5, 1.0]
    assert {(len(d.request.prompt_ids), d.request.num_tokens) for d in due} == {(111, 39)}
    with pytest.raises(ValueError, match="no times"):
        make_traffic(Shape(arrivals="trace", num_requests=1, rate_per_s=1.0),
                     (parse_lengths("3"), parse_lengths("3")), 1)  # fmt: skip


class FakeTarget:
    """Answers at once, refuses every third, never ends the fifth."""

    def __init__(self) -> None:
        self.num_sent = self.num_open = self.most_open = 0

    async def send(self, request: Prompted, since: float) -> RequestSample:
        self.num_sent += 1
        number = self.num_sent
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            await asyncio.sleep(30 if number == 5 else 0.001)
            if number % 3 == 0:
                raise OverloadedError("too much", code="overloaded", retry_after_s=2.0)
            return SAMPLE
        finally:
            self.num_open -= 1


def drive_fake(max_in_flight: int | None, num_requests: int = 6) -> tuple[Driven, FakeTarget]:
    target = FakeTarget()
    traffic = [Due(0.0, Prompted([1], 3)) for _ in range(num_requests)]
    coroutine = drive(target, traffic, max_in_flight=max_in_flight, drain_s=0.3)
    return asyncio.run(coroutine), target


def test_what_is_refused_or_cut_off_is_counted() -> None:
    driven, target = drive_fake(None)
    codes = [fate.error_code for fate in driven.fates]
    assert codes == [None, None, "overloaded", None, UNFINISHED, "overloaded"]
    assert target.most_open == 6
    figures = summarise(driven, Targets(ttft_s=0.5))
    assert (figures["num_sent"], figures["num_done"], figures["num_good"]) == (6, 3, 3)
    assert (figures["num_refused"], figures["num_unfinished"]) == (2, 1)
    assert figures["attainment"] == 0.5 and figures["errors"]["overloaded"] == 2


def test_a_limit_in_flight_is_kept() -> None:
    driven, target = drive_fake(2, num_requests=4)
    assert target.most_open == 2 and len(driven.fates) == 4


def test_the_steady_part_leaves_the_ends_out() -> None:
    fates = tuple(Fate(Due(float(n), Prompted([1], 3)), 0.0, SAMPLE) for n in range(11))
    figures = summarise(Driven(fates, 12.0), Targets())
    assert figures["num_done"] == 11 and figures["steady"]["num_done"] == 9


def test_runs_are_saved_and_compared(tmp_path: Path) -> None:
    fates = tuple(Fate(Due(float(n), Prompted([1], 3)), 0.0, SAMPLE) for n in range(11))
    document = {"settings": {"seed": 1}, **summarise(Driven(fates, 12.0), Targets())}
    save(tmp_path / "a.json", document)
    save(tmp_path / "b.json", document | {"settings": {"seed": 2}})
    runs = [load(tmp_path / name) for name in ("a.json", "b.json")]
    lines = compare(*runs)
    assert any("ttft p50, ms" in line and line.endswith("1.00") for line in lines)
    assert lines[-1] == "not alike: seed: A 1, B 2"
    (tmp_path / "c.json").write_text('{"version": 0}')
    with pytest.raises(ValueError, match="no run of this version"):
        load(tmp_path / "c.json")


async def models(request: Request) -> Response:
    return JSONResponse({"data": [{"id": "toy"}]})


async def completions(request: Request) -> Response:
    asked = await request.json()
    if asked["max_tokens"] == 9:
        body = {"error": {"message": "full"}}
        return JSONResponse(body, 429, headers={"Retry-After": "3"})

    async def frames() -> AsyncIterator[str]:
        for number in range(asked["max_tokens"]):
            yield f"data: {json.dumps({'choices': [{'text': f'w{number} '}]})}\n\n"
            await asyncio.sleep(0.002)
        if asked["max_tokens"] == 8:
            yield 'data: {"error": {"message": "lost"}}\n\n'
        usage = {"completion_tokens": asked["max_tokens"],
                 "prompt_tokens_details": {"cached_tokens": 1}}  # fmt: skip
        yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"

    return StreamingResponse(frames(), media_type="text/event-stream")


async def with_server() -> tuple[RequestSample, list[TandemError]]:
    routes = [Route("/v1/models", models), Route("/v1/completions", completions, methods=["POST"])]
    config = uvicorn.Config(Starlette(routes=routes), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    errors = []
    loop = asyncio.get_running_loop()
    url = f"http://127.0.0.1:{port}/v1"
    async with open_http_target(url, None, "completions", None, 5.0) as target:
        assert target.model == "toy"
        sample = await target.send(Prompted([1, 2], 4), loop.time())
        for num_tokens in (8, 9):
            try:
                await target.send(Prompted([1], num_tokens), 0.0)
            except TandemError as error:
                errors.append(error)
    server.should_exit = True
    await serving
    return sample, errors


def test_any_openai_server_is_measured() -> None:
    sample, (in_stream, refused) = asyncio.run(with_server())
    assert sample.num_tokens == 4 and len(sample.gaps_s) == 3 and sample.num_cached_tokens == 1
    assert "lost" in str(in_stream)
    assert isinstance(refused, OverloadedError) and refused.retry_after_s == 3.0


def test_nobody_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--base-url", "http://127.0.0.1:9", "--num-prompts", "1", "--wait-s", "0.1"]
    with pytest.raises(UnavailableError, match="is the server there"):
        run(make_parser().parse_args(flags), print)


@pytest.mark.parametrize("program", ["loadgen", "simulator.performance"])
def test_help_loads_little(program: str) -> None:
    """numpy alone takes a quarter of the 0.3 s in which `--help` answers."""
    code = f"import sys, {program}.__main__; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=25).returncode == 0
