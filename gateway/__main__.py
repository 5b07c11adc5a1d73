"""`python -m gateway`: the gateway's composition root."""

import gc
import importlib
import os
import sys
from pathlib import Path

import uvloop

from gateway.checks import check
from gateway.config import GatewayConfig
from gateway.served_model import ServedModel
from gateway.server import serve
from gateway.tokenize import Tokenizer
from tandem.config import load_config
from tandem.messages.common import ModelIdentity
from tandem.model_folder import (
    load_generation_defaults,
    load_model_config,
    require_tokenizer,
    resolve_model,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from tandem.service import Log, stop_on_signals


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer.

    transformers loads torch where it finds it: 3 s and 200 MB that a gateway has no use for.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    sys.modules["torch"] = None  # type: ignore[assignment]
    transformers = importlib.import_module("transformers")
    tokenizer: Tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer


def load_model(config: GatewayConfig) -> ServedModel:
    """What a gateway must know of the model. Raises ValueError with advice."""
    folder = resolve_model(config.model)
    require_tokenizer(folder)
    model = load_model_config(folder)
    longest = model.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ValueError(
            f"max-model-len is {config.max_model_len}, and the model's context is {longest}: "
            "lower it"
        )
    identity = ModelIdentity(
        served_name=config.served_model_name or folder.resolve().name,
        weights_fingerprint=weights_fingerprint(folder),
        tokenizer_fingerprint=tokenizer_fingerprint(folder),
        dtype="",  # the nodes' own choice
        max_model_len=config.max_model_len or longest,
        vocab_size=model.vocab_size,
        num_labels=model.num_labels,
    )
    return ServedModel(identity, load_generation_defaults(folder), load_tokenizer(folder))


async def run(config: GatewayConfig, model: ServedModel) -> None:
    """Serve until SIGINT or SIGTERM."""
    await serve(
        config,
        model,
        stop=stop_on_signals(),
        on_ready=lambda address: print(f"ready gateway {address}", flush=True),
        on_http=lambda address: print(f"http gateway {address}", flush=True),
    )


def main() -> int:
    """Exit status: 0 after a clean stop, 1 where it could not serve."""
    config = load_config(
        GatewayConfig, sys.argv[1:], prog="python -m gateway", section="gateway", check=check
    )
    Log(config, "gateway", config.name)
    try:
        model = load_model(config)
        gc.collect()
        gc.freeze()  # of 90,000 objects that stay: each full collection held every stream for 50 ms
        uvloop.run(run(config, model))
    except ValueError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
