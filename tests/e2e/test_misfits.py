"""Deployments that cannot work say so, with both values and what to do."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem.child_process import child_environment
from tandem.client import Client
from tandem.errors import UnavailableError
from tandem.launch import LocalCluster

SMALL = ("--num-pages", "300", "--max-model-len", "256")


def run_process(module: str, *flags: str) -> str:
    """The output of a process that is expected to give up by itself."""
    done = subprocess.run(
        [sys.executable, "-m", module, *flags],
        env=child_environment(os.environ, 1),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def cluster(demo_model: Path) -> Iterator[LocalCluster]:
    with LocalCluster(model=str(demo_model), node_args=SMALL, start_timeout_s=60) as running:
        yield running


@pytest.fixture
def copied_model(demo_model: Path, tmp_path: Path) -> Path:
    """The demo model in a folder that a test may change."""
    folder = tmp_path / "demo"
    shutil.copytree(demo_model, folder)
    return folder


def change_weights(folder: Path) -> None:
    """Flip one bit of the last weight."""
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.timeout(90)
@pytest.mark.parametrize("what", ["weights", "tokenizer"])
def test_nodes_with_other_weights_or_tokenizers_are_turned_away(
    cluster: LocalCluster, copied_model: Path, what: str
) -> None:
    if what == "weights":
        change_weights(copied_model)
    else:
        file = copied_model / "tokenizer_config.json"
        file.write_text(file.read_text().replace("{", '{"x": 1, ', 1))
    output = run_process(
        "decode_node",
        *("--model", str(copied_model), "--coordinator", cluster.coordinator_address, *SMALL),
    )
    assert "refused" in output
    assert f"{what} fingerprint" in output.replace("_", " ")
    with Client(cluster.gateway_address) as client:
        assert client.ping().ready


@pytest.mark.timeout(90)
@pytest.mark.parametrize(
    ("flags", "values"),
    [
        (("--page-size", "32"), ("page_size", "32 here", "16 there")),
        (("--dtype", "bfloat16"), ("dtype", "bfloat16", "float32")),
    ],
)
def test_regression_14_nodes_with_other_pages_are_turned_away_with_both_values(
    cluster: LocalCluster, demo_model: Path, flags: tuple[str, str], values: tuple[str, ...]
) -> None:
    address = cluster.coordinator_address
    common = ("--model", str(demo_model), "--coordinator", address, *SMALL)
    output = run_process("prefill_node", *common, *flags)
    assert "refused" in output
    assert all(value in output for value in values), output[-500:]
    with Client(cluster.gateway_address) as client:
        assert client.ping().ready


def test_too_few_pages_for_one_prompt(demo_model: Path) -> None:
    output = run_process("prefill_node", "--model", str(demo_model), "--num-pages", "8")
    assert "--num-pages" in output
    assert "--max-model-len" in output


def test_a_model_folder_without_tokenizer(copied_model: Path) -> None:
    for file in copied_model.glob("tokenizer*"):
        file.unlink()
    for module in ("gateway", "prefill_node"):
        output = run_process(module, "--model", str(copied_model))
        assert "tokenizer" in output
        assert str(copied_model) in output


def test_a_model_folder_that_is_none(tmp_path: Path) -> None:
    output = run_process("decode_node", "--model", str(tmp_path / "nothing"))
    assert "nothing" in output


@pytest.mark.timeout(60)
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_missing_role_is_named(demo_model: Path, role: str) -> None:
    cluster = LocalCluster(model=str(demo_model), node_args=SMALL, start_timeout_s=60)
    with cluster, Client(cluster.gateway_address) as client:
        cluster.processes[f"{role}-0"].send_signal(signal.SIGINT)
        assert cluster.processes[f"{role}-0"].wait(20)
        with pytest.raises(UnavailableError, match=rf"no {role} node.*launch_{role}"):
            client.generate(["a"], progress=False)


@pytest.mark.parametrize("module", ["gateway", "decode_node"])
def test_a_name_that_cannot_travel(demo_model: Path, module: str) -> None:
    output = run_process(module, "--model", str(demo_model), "--name", "node (v2)", "--port", "0")
    assert "--name" in output
    assert "letters, digits" in output


@pytest.mark.parametrize("transport", ["auto", "zmq", "cuda_ipc"])
def test_a_gpu_whose_pages_cannot_leave_it_needs_both_roles(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    flags = ("--model", str(demo_model), "--device", "cuda", "--transport", transport)
    output = run_process("prefill_node", *flags)
    assert "KV pages cannot leave cuda" in output
    assert "--decode-weight 1" in output
    assert "cuda_ipc" in output if transport == "zmq" else "upy" in output.lower()
