"""The device side of a node without a model (`--device fake`): for fault tests, never for answers.

Fingerprints, vocabulary and context are those of the model folder, so gateways and tokenizers work;
tokens are hashes of the KV pages' content (`node/fake_runner.py`), whatever the seed, so a test
knows every answer in advance:

    LocalCluster(model="models/demo", node_args=["--device", "fake", "--fake-step-s", "0.01"])
    history = prompt_ids; each next token is fake_token(np.array(history, np.int32), 4096)

Steps take no time, `--fake-step-s`, or, for load that is like a model's, what the linear model of
`scheduling.costs` gives for their shape: with `--fake-costs 0.004:0.0005:0:0.0005:0` a step takes
4 ms, and 0.5 ms for each prefill token and each decode row.

SIGUSR1 wedges the process: the next step hangs for `--fake-wedge-s`, while its I/O thread goes on
beating. Nothing hangs as long as there is nothing to compute. SIGSTOP freezes all of it.
"""

import math
import signal
from collections.abc import Callable

import numpy as np

from node.config import NodeConfig
from node.device import Device
from node.fake_runner import FAKE_LAYOUT, FakeRunner
from node.state import NodeIdentity
from tandem.keys import read_prefix_key
from tandem.messages.common import ModelIdentity, NodeCosts
from tandem.model_folder import (
    load_generation_defaults,
    load_model_config,
    resolve_model,
    tokenizer_fingerprint,
    weights_fingerprint,
)

DEFAULT_PAGES = 512


def build_device(
    config: NodeConfig, node_id: str, incarnation: int, allocate: Callable[[int], memoryview]
) -> Device:
    """See the module; call it on the main thread. ValueError where the folder cannot be read."""
    folder = resolve_model(config.model)
    model_config = load_model_config(folder)
    num_pages = config.num_pages or DEFAULT_PAGES
    # The last page is the pool's scratch page, as in every pool: no request names it.
    buffer = allocate((num_pages + 1) * FAKE_LAYOUT.page_bytes)
    pool = np.frombuffer(buffer, np.uint8).reshape(num_pages + 1, FAKE_LAYOUT.page_bytes)
    model = ModelIdentity(
        served_name=config.served_model_name or folder.resolve().name,
        weights_fingerprint=weights_fingerprint(folder),
        tokenizer_fingerprint=tokenizer_fingerprint(folder),
        dtype=FAKE_LAYOUT.dtype,
        max_model_len=config.max_model_len or model_config.max_position_embeddings,
        vocab_size=model_config.vocab_size,
        num_labels=model_config.num_labels,
    )
    identity = NodeIdentity(
        node_id=node_id,
        incarnation=incarnation,
        model=model,
        layout=FAKE_LAYOUT,
        eos_token_ids=load_generation_defaults(folder).eos_token_ids,
        prefix_key=read_prefix_key(config.keys),
    )
    runner = FakeRunner(
        pool[:num_pages],
        vocab_size=model_config.vocab_size,
        step_s=config.fake_step_s,
        costs=parse_costs(config.fake_costs),
        wedge_s=config.fake_wedge_s,
    )
    signal.signal(signal.SIGUSR1, lambda number, frame: runner.wedge())
    return Device(runner, identity, True, f"no model: {num_pages} pages, tokens are hashes")


def parse_costs(text: str | None) -> NodeCosts | None:
    """The five coefficients of a step, in seconds, with colons between. ValueError for others."""
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(":")]
    except ValueError:
        values = []
    if len(values) != 5 or not all(math.isfinite(value) and value >= 0 for value in values):
        raise ValueError(
            f"--fake-costs {text} are not five numbers from 0 on with colons between: seconds per "
            "step, prefill token, prefill pair, decode row and decode token, like "
            "0.004:0.0005:0:0.0005:0"
        )
    step_s, prefill_token_s, prefill_context_s, decode_row_s, decode_context_s = values
    return NodeCosts(
        step_s=step_s,
        prefill_token_s=prefill_token_s,
        prefill_context_s=prefill_context_s,
        decode_row_s=decode_row_s,
        decode_context_s=decode_context_s,
    )
