"""What `python -m prefill_node --check` and its like look at."""

from pathlib import Path

from node.config import NodeConfig
from scheduling.batch.catalogue import make_batch_policy
from scheduling.batch.options import split_options
from scheduling.prefill.catalogue import make_prefill_policy
from tandem.checks import Check, folder_check, port_check, tried
from tandem.key_checks import key_checks
from tandem.model_folder import load_model_config, resolve_model
from tandem.process_checks import model_checks

GPU_CONTROL = Path("/dev/nvidiactl")


def check(config: NodeConfig) -> list[Check]:
    """Model, device, policies, ports, keys, folders; no weights are read."""

    def policies() -> str:
        make_batch_policy(config.batch_policy, split_options(config.batch_option))
        make_prefill_policy(config.prefill_policy, split_options(config.prefill_option, "prefill"))
        return f"batch {config.batch_policy}, prefill {config.prefill_policy}"

    def pages() -> str:
        if config.num_pages is None:
            return f"as many as {config.memory_share:g} of the memory left after loading holds"
        model = load_model_config(resolve_model(config.model, download=False))
        longest = config.max_model_len or model.max_position_embeddings
        if config.num_pages * config.page_size < longest:
            raise ValueError(
                f"{config.num_pages} pages of {config.page_size} tokens cannot hold one sequence "
                f"of {longest} tokens: raise --num-pages, or lower --max-model-len"
            )
        return f"{config.num_pages} of {config.page_size} tokens"

    return [
        *model_checks(config.model, config.max_model_len),
        tried("device", lambda: _device(config.device)),
        tried("policies", policies),
        tried("pages", pages),
        port_check("port", config.host, config.port),
        *key_checks(
            config.keys,
            "node",
            config.name,
            host=config.host,
            allow_unauthenticated=config.allow_unauthenticated,
        ),
        *folder_check("run dir", config.run_dir),
        *folder_check("event log", config.event_log),
    ]


def _device(device: str) -> str:
    """Whether there can be such a device, as far as is known without loading torch."""
    if device.startswith("cuda") and not GPU_CONTROL.exists():
        raise ValueError(f"--device {device}, but this host has no {GPU_CONTROL}: use cpu")
    if device not in ("cpu", "fake") and not device.startswith("cuda"):
        raise ValueError(f"--device {device} is unknown: use cpu, cuda or cuda:N")
    return device
