"""Builds a node's device side from its configuration: model, pages, identity."""

import logging
import os
import time

import torch

from engine.build import BuiltRunner, EngineOptions, build_runner
from engine.grammar import Grammars
from engine.kv_pool import AllocateBuffer
from engine.progress import LoadProgress
from node.config import NodeConfig
from node.device import Device
from node.state import NodeIdentity
from tandem.keys import read_prefix_key
from tandem.messages.common import ModelIdentity
from tandem.model_folder import (
    load_generation_defaults,
    load_model_config,
    resolve_model,
    tokenizer_fingerprint,
    weights_fingerprint,
)

log = logging.getLogger("tandem.node")


def report_phase(name: str, seconds: float) -> None:
    """Named start-up phases, for people and the launcher."""
    log.info("%-20s %6.2f s", name, seconds)


def build_device(
    config: NodeConfig, node_id: str, incarnation: int, allocate: AllocateBuffer | None
) -> Device:
    """Load the model and allocate pages; with `allocate` None they lie in torch's own memory.

    ValueError with advice where something does not fit.
    """
    torch.set_num_threads(1)  # of an operation: the threads of a step share it by rows
    folder = resolve_model(config.model)
    model_config = load_model_config(folder)
    started = time.perf_counter()
    fingerprints = weights_fingerprint(folder), tokenizer_fingerprint(folder)
    report_phase("fingerprints", time.perf_counter() - started)
    eos_token_ids = load_generation_defaults(folder).eos_token_ids
    started = time.perf_counter()
    grammars = Grammars(folder, model_config.vocab_size, eos_token_ids)
    if grammars.load():
        report_phase("vocabulary of grammars", time.perf_counter() - started)
    built = build_runner(
        folder,
        model_config,
        EngineOptions(
            device=config.device,
            dtype=config.dtype,
            numerics=config.numerics,
            page_size=config.page_size,
            num_pages=config.num_pages,
            memory_share=config.memory_share,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.num_step_tokens,
            num_threads=config.cpu_threads or int(os.environ.get("OMP_NUM_THREADS", "1")),
        ),
        allocate=allocate,
        on_phase=report_phase,
        progress=LoadProgress(),
        grammars=grammars,
    )
    model = ModelIdentity(
        served_name=config.served_model_name or folder.resolve().name,
        weights_fingerprint=fingerprints[0],
        tokenizer_fingerprint=fingerprints[1],
        dtype=built.runner.layout.dtype,
        max_model_len=built.max_model_len,
        vocab_size=model_config.vocab_size,
        num_labels=model_config.num_labels,
    )
    identity = NodeIdentity(
        node_id=node_id,
        incarnation=incarnation,
        model=model,
        layout=built.runner.layout,
        eos_token_ids=eos_token_ids,
        prefix_key=read_prefix_key(config.keys),
    )
    return Device(built.fastest, identity, allocate is not None, _describe(built), grammars)


def _describe(built: BuiltRunner) -> str:
    """The memory budget: weights, pages, tokens that fit."""
    budget, layout = built.budget, built.runner.layout
    steps = f"steps {budget.step_bytes / 2**20:.1f} MiB, " if budget.step_bytes else ""
    pages_mib = budget.num_pages * layout.page_bytes / 2**20
    return (
        f"memory: weights {budget.weight_bytes / 2**20:.1f} MiB, {steps}"
        f"{budget.num_pages} KV pages of {layout.page_size} tokens ({pages_mib:.1f} MiB), "
        f"{budget.num_pages * layout.page_size} tokens fit; ops {built.ops_name}"
    )
