"""`python -m coordinator` and `python -m gateway` as processes: ready lines, clean ends, advice."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest
import zmq

Start = Callable[..., subprocess.Popen]


@pytest.fixture
def start(repository: Path) -> Iterator[Start]:
    """Start a module of this checkout; whatever still runs at the end is killed."""
    running: list[subprocess.Popen] = []

    def launch(module: str, *flags: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *flags],
            cwd=repository,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield launch
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


def ready_address(process: subprocess.Popen, kind: str) -> str:
    """The address of the `ready` line, which is the first line of standard output."""
    words = process.stdout.readline().split()
    assert words[:2] == ["ready", kind], words
    assert words[2].startswith("tcp://127.0.0.1:")
    return words[2]


@pytest.fixture
def coordinator(start: Start) -> tuple[subprocess.Popen, str]:
    process = start("coordinator", "--port", "0", "--dashboard-port", "-1")
    return process, ready_address(process, "coordinator")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_announce_themselves_and_end_cleanly(start, coordinator, demo_model, number) -> None:
    process, address = coordinator
    flags = [
        "--port",
        "0",
        "--http-port",
        "0",
        "--coordinator",
        address,
        "--model",
        str(demo_model),
    ]
    gateway = start("gateway", *flags, "--name", "gw-7")
    ready_address(gateway, "gateway")
    *words, http = gateway.stdout.readline().split()
    assert words == ["http", "gateway"]
    with urllib.request.urlopen(f"{http}/health", timeout=10) as answer:
        assert json.load(answer) == {"status": "ok"}
    for each in (gateway, process):
        each.send_signal(number)
        _, log = each.communicate(timeout=15)
        assert each.returncode == 0, log
        assert "Traceback" not in log
    assert "gateway gw-7 joined" in log


def test_a_gateway_with_another_tokenizer_is_refused_with_both_values(
    start, coordinator, demo_model, tmp_path
) -> None:
    _, address = coordinator
    other = tmp_path / "demo"
    shutil.copytree(demo_model, other)
    with (other / "tokenizer_config.json").open("a") as file:
        file.write("\n")
    flags = ["--port", "0", "--http-port", "0", "--coordinator", address]
    ready_address(start("gateway", *flags, "--model", str(demo_model), "--name", "a"), "gateway")
    second = start("gateway", *flags, "--model", str(other), "--name", "b")
    _, log = second.communicate(timeout=20)
    assert second.returncode == 1
    assert "tokenizer_fingerprint is" in log.splitlines()[-1]
    assert " in b and " in log
    assert "same tokenizer" in log


@pytest.mark.parametrize(
    ("removed", "flags", "advice"),
    [
        ("tokenizer.json", [], "no tokenizer"),
        ("", ["--max-model-len", "1000000"], "lower it"),
        ("", ["--max-live-requests", "0"], "at least 1"),
        ("", ["--client-silence-s", "0.2"], "at least 1"),
        ("", ["--http-port", "70000"], "-1 for none"),
        ("", ["--http-idle-s", "0"], "above 0"),
        ("", ["--tenants", "no/such.toml"], "tenants file no/such.toml"),
    ],
)
def test_what_keeps_a_gateway_from_serving_is_one_clear_line(
    start, demo_model, tmp_path, removed, flags, advice
) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(demo_model, folder)
    if removed:
        (folder / removed).unlink()
    process = start("gateway", "--port", "0", "--http-port", "0", "--model", str(folder), *flags)
    _, log = process.communicate(timeout=20)
    assert process.returncode != 0
    assert advice in log.splitlines()[-1]
    assert "Traceback" not in log


def test_a_taken_port_is_said_to_be_taken(start, coordinator, demo_model) -> None:
    _, address = coordinator
    port = address.rsplit(":", 1)[1]
    second = start("coordinator", "--port", port, "--dashboard-port", "-1")
    third = start("gateway", "--port", "0", "--http-port", port, "--model", str(demo_model))
    for process, advice in ((second, "is another process"), (third, "with --http-port")):
        _, log = process.communicate(timeout=20)
        assert process.returncode == 1
        assert advice in log.splitlines()[-1]


def test_a_stopping_gateway_waits_and_leaves_no_client_without_an_end(
    start, demo_model, free_port
) -> None:
    """Without a coordinator a request waits for its placement: one signal waits, two end it."""
    port = free_port()
    flags = ["--port", str(port), "--http-port", "0", "--model", str(demo_model)]
    process = start("gateway", *flags)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVTIMEO, 15_000)
        socket.connect(f"tcp://127.0.0.1:{port}")

        def ask(label: str) -> dict:
            message = msgpack.packb({"type": "Submit", "label": label, "prompt": 0})
            socket.send_multipart([b"TDM\x01", message, b"def f"])
            return msgpack.unpackb(socket.recv_multipart()[1])

        accepted = ask("first")
        assert accepted["type"] == "Accepted"
        process.send_signal(signal.SIGTERM)
        # The signal may still be on its way. A label that was accepted is accepted again.
        labels = (f"late {number}" for number in itertools.count())
        while (answer := ask(next(labels)))["type"] == "Accepted":
            time.sleep(0.05)
        assert (answer["type"], answer["code"]) == ("Refused", "unavailable")
        assert "stopping" in answer["message"]
        process.send_signal(signal.SIGTERM)
        done = msgpack.unpackb(socket.recv_multipart()[1])
        assert (done["request_id"], done["code"]) == (accepted["request_id"], "unavailable")
    _, log = process.communicate(timeout=15)
    assert process.returncode == 0, log
