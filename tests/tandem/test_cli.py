"""The command line: generate and status against scripted servers, up against stand-ins."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tandem import cli_up
from tandem.addresses import COORDINATOR_PORT
from tandem.cli import main
from tandem.messages.client import Submit
from tandem.messages.common import ModelIdentity, SlaTargets, Timeline, Usage
from tandem.messages.membership import (
    ClusterStatus,
    GatewayStatus,
    NodeLoad,
    NodeStatus,
    PageCounts,
    RoleWeights,
)
from tandem.messages.placement import ClassCounts
from tandem.status import render_status
from tandem.tables import format_table, render_timeline

ROOT = Path(__file__).resolve().parents[2]


def make_node(name: str, prefill: float, decode: float, load: NodeLoad | None) -> NodeStatus:
    return NodeStatus(
        node_id=name,
        epoch=3,
        weights=RoleWeights(prefill=prefill, decode=decode),
        control_address="tcp://127.0.0.1:1234",
        device="cpu",
        num_pages=512,
        heartbeat_age_s=0.25,
        draining=name == "decode-0",
        load=load,
    )


STATUS = ClusterStatus(
    coordinator_incarnation=1,
    uptime_s=3725.0,
    model=ModelIdentity(
        served_name="demo", weights_fingerprint="abcdef0123456789", tokenizer_fingerprint="t",
        dtype="float32", max_model_len=4096, vocab_size=4096,
    ),
    nodes=(
        make_node(
            "prefill-0", 1, 0,
            NodeLoad(
                num_steps=77, step_age_s=0.0, num_prefill_waiting=5, num_prefill_tokens_waiting=9,
                num_decode_running=0, num_decode_waiting=0, num_transfers=2, num_requests=6,
                num_tokens_out=0,
                pages=PageCounts(
                    free=400, granted=1, filling=2, ready=3, active=100, cached=5, draining=1,
                    quarantined=0,
                ),
            ),
        ),
        make_node("decode-0", 0, 1, None),
        make_node("mixed", 1, 3, None),
    ),
    gateways=(GatewayStatus(gateway_id="gateway", num_live_requests=6, heartbeat_age_s=0.5),),
    classes=(
        ClassCounts(
            targets=SlaTargets(sla_class="interactive", ttft_ms=500, tpot_ms=50),
            num_ended=8, num_attained=6, num_failed=1,
        ),
        ClassCounts(
            targets=SlaTargets(sla_class="batch", ttft_ms=1e4, tpot_ms=1e3),
            num_ended=0, num_attained=0, num_failed=0,
        ),
    ),
    num_live_requests=6,
    num_dropped_messages=0,
)  # fmt: skip


def test_generate_streams_text(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "count 3", "--gateway", gateway.address]) == 0
    assert capsys.readouterr().out == "0 1 2 \n"


def test_generate_passes_every_flag_on(gateway: Any) -> None:
    flags = (
        "--max-tokens 5 --temperature 0.5 --top-p 0.9 --top-k 4 --seed 3 --stop x --stop y "
        "--ignore-eos --model m --sla-class batch"
    )
    assert main(["generate", "count 1", "--gateway", gateway.address, *flags.split()]) == 0
    (submit,) = [m for m in gateway.received if isinstance(m, Submit)]
    params = submit.params
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k) == (5, 0.5, 0.9, 4)
    assert (params.seed, params.stop, params.ignore_eos) == (3, ("x", "y"), True)
    assert (submit.model, submit.sla_class) == ("m", "batch")


def test_generate_chat_timeline_and_json(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--gateway", gateway.address, "--chat", "--json", "--timeline"]
    assert main(["generate", "count 2", *flags]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert answer["text"] == "0 1 " and answer["token_ids"] == [100, 101]
    assert answer["finish_reason"] == "stop" and answer["usage"]["num_output_tokens"] == 2
    assert "TTFT 10.0 ms" in err and "prefill-0" in err
    assert gateway.received[-1].chat[0].role == "user"


def test_generate_reads_standard_input(
    gateway: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.write(write, b"count 1")
    os.close(write)
    monkeypatch.setenv("TANDEM_GATEWAY", gateway.address)
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["generate", "-"]) == 0
    assert capsys.readouterr().out == "0 \n"


def test_generate_says_what_failed(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "fail", "--gateway", gateway.address]) == 1
    out, err = capsys.readouterr()
    assert out == "0 1 " and "tandem generate: prefill-0 died" in err


def test_status_as_table_and_as_json(
    coordinator_of: Callable[[ClusterStatus], str], capsys: pytest.CaptureFixture[str]
) -> None:
    coordinator = coordinator_of(STATUS)
    assert main(["status", "--coordinator", coordinator]) == 0
    assert capsys.readouterr().out == render_status(STATUS) + "\n"
    assert main(["status", "--coordinator", coordinator, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nodes"][0]["load"]["pages"]["free"] == 400


def test_status_without_a_coordinator(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tandem.status.ANSWER_S", 0.2)
    assert main(["status", "--coordinator", "tcp://127.0.0.1:9"]) == 1
    assert "no coordinator answers at tcp://127.0.0.1:9 within 0.2 s" in capsys.readouterr().err
    assert main(["status", "--coordinator", "nowhere"]) == 1
    assert "use tcp://host:port" in capsys.readouterr().err


def test_the_status_table_shows_every_part() -> None:
    lines = [line.split() for line in render_status(STATUS).splitlines()]
    text = render_status(STATUS)
    assert "up 1 h 2 min, 6 live requests" in text
    assert "demo (float32, context 4,096, weights abcdef012345)" in text
    assert ["prefill-0", "prefill", "3", "5", "0", "0", "2", "77"] in [row[:8] for row in lines]
    assert ["decode-0", "decode,", "draining", "3", "?"] in [row[:5] for row in lines]
    assert ["mixed", "25%", "prefill"] in [row[:3] for row in lines]
    assert ["prefill-0", "512", "400", "1", "2", "3", "100", "5", "1", "0"] in lines
    assert ["gateway", "6", "0.5", "s", "ago"] in lines
    assert ["interactive", "500", "ms", "50", "ms", "8", "6", "1", "75.0%"] in lines
    assert lines[-1][-1] == "-"


def test_an_empty_deployment_has_a_table_too() -> None:
    empty = ClusterStatus(
        coordinator_incarnation=1, uptime_s=1.0, model=None, nodes=(), gateways=(), classes=(),
        num_live_requests=0, num_dropped_messages=0,
    )  # fmt: skip
    assert "none: no node was admitted" in render_status(empty)


def test_tables_are_aligned() -> None:
    assert format_table(("a", "bb"), [("long", "1"), ("x", "333")]) == [
        "a      bb", "long    1", "x     333",
    ]  # fmt: skip


def test_a_timeline_shows_only_the_stages_that_happened() -> None:
    usage = Usage(num_prompt_tokens=10, num_output_tokens=1, num_cached_tokens=4)
    timeline = Timeline(
        received_unix_s=0.0, placed_s=0.01, prefill_start_s=0.02, first_token_s=0.1,
        finished_s=0.1, num_attempts=2,
    )  # fmt: skip
    *stages, last = render_timeline(timeline, usage).splitlines()
    assert [line.split()[0] for line in stages] == ["place", "queue", "prefill"]
    assert stages[2].count("#") == 32  # 80 of 100 ms, in 40 marks
    assert last == "10 + 1 tokens, 4 of them cached, TTFT 100.0 ms, total 100.0 ms, 2 attempts"


@pytest.mark.parametrize("command", [[], ["up"], ["generate"], ["status"], ["drain"]])
def test_help_and_version(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0 and "usage: tandem" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("tandem ")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["status", "--nonsense"], "unknown arguments: --nonsense"),
        (["generate"], "PROMPT"),
        (["up"], "--model"),
        (["drain"], "NAME"),
        (["fly"], "invalid choice"),
    ],
)
def test_wrong_use(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2 and words in capsys.readouterr().err


def test_the_usual_port_where_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_up, "is_free", lambda port: port == COORDINATOR_PORT)
    assert cli_up.choose_port(None, COORDINATOR_PORT) == COORDINATOR_PORT
    assert cli_up.choose_port(None, 1) is None
    assert cli_up.choose_port(0, COORDINATOR_PORT) is None
    assert cli_up.choose_port(5, COORDINATOR_PORT) == 5


@pytest.fixture
def up(fake_processes: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Runs `tandem up` over the stand-ins."""
    program = f"""
import sys
from pathlib import Path
from tandem import child_process, cli
child_process.PACKAGES_FOLDER = Path({str(fake_processes)!r})
sys.exit(cli.main())
"""
    started: list[subprocess.Popen[str]] = []

    def run(*flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, "up", "--model", "m", "--gateway-port", "0"]
        process = subprocess.Popen(
            [*command, "--coordinator-port", "0", "--run-dir", str(tmp_path / "run"), *flags],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate(timeout=10)


def read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            break
    return "".join(lines)


def test_up_shows_phases_and_drains_on_ctrl_c(up: Callable[..., subprocess.Popen[str]]) -> None:
    process = up("--decode", "2", "--num-pages", "7")
    text = read_until(process, "Ctrl-C drains")
    assert "decode-1    | loading" in text and "Ready after" in text
    assert "tandem generate --gateway tcp://127.0.0.1:" in text
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=10)
    assert process.returncode == 0 and "Draining" in rest and "Stopped" in rest


def test_up_goes_on_while_one_gateway_is_left(
    up: Callable[..., subprocess.Popen[str]],
) -> None:
    process = up("--num-gateways", "2")
    text = read_until(process, "Ctrl-C drains")
    assert text.count("tandem generate --gateway tcp://127.0.0.1:") == 2
    pids = {
        line.split()[0]: int(line.split()[-1]) for line in text.splitlines() if " | pid " in line
    }
    os.kill(pids["gateway-1"], signal.SIGINT)
    assert "gateway-1 has left" in read_until(process, "has left")
    os.kill(pids["gateway"], signal.SIGKILL)
    rest, _ = process.communicate(timeout=10)
    assert process.returncode == 1 and "nothing is left to serve requests" in rest


def test_up_ends_with_the_log_of_an_early_death(up: Callable[..., subprocess.Popen[str]]) -> None:
    process = up("--gateway-args", "--fake die")
    text, _ = process.communicate(timeout=15)
    assert process.returncode == 1
    assert "tandem up: gateway ended (exit status 3)" in text
    assert "cannot find the tokenizer" in text


def test_up_survives_a_node_but_not_all_of_them(
    up: Callable[..., subprocess.Popen[str]],
) -> None:
    process = up()
    text = read_until(process, "Ctrl-C drains")
    pids = {
        line.split()[0]: int(line.split()[-1]) for line in text.splitlines() if " | pid " in line
    }
    os.kill(pids["decode-0"], signal.SIGKILL)
    assert "decode-0 ended (killed by SIGKILL)" in read_until(process, "decode-0 ended")
    assert process.poll() is None
    os.kill(pids["prefill-0"], signal.SIGKILL)
    rest, _ = process.communicate(timeout=10)
    assert process.returncode == 1 and "nothing is left to serve requests" in rest
