"""What `--check` looks at in every process that has a model or keys; nothing is started."""

from collections.abc import Callable
from pathlib import Path

from tandem.checks import Check, tried
from tandem.model_folder import (
    load_generation_defaults,
    load_model_config,
    require_tokenizer,
    resolve_model,
    safetensors_files,
)


def model_checks(model: str, max_model_len: int | None) -> list[Check]:
    """Config, tokenizer and weights of a folder; of a Hub name that is not here only that."""
    try:
        folder = resolve_model(model, download=False)
    except ValueError as error:
        is_path = Path(model).is_absolute() or model.startswith((".", "~"))
        if is_path or "/" not in model:
            return [Check("model", "fail", str(error))]
        return [Check("model", "warn", f"{model} is not here yet: it would be downloaded")]

    def config() -> str:
        found = load_model_config(folder)
        load_generation_defaults(folder)
        longest = found.max_position_embeddings
        if max_model_len is not None and max_model_len > longest:
            raise ValueError(
                f"max-model-len is {max_model_len}, and the model's context is {longest}: lower it"
            )
        return f"{folder}: {found.num_layers} layers, context {longest:,}"

    def tokenizer() -> str:
        require_tokenizer(folder)
        return "is there"

    def weights() -> str:
        files = safetensors_files(folder)
        num_bytes = sum(file.stat().st_size for file in files)
        return f"{len(files)} files, {num_bytes / 1e9:.2f} GB"

    parts: dict[str, Callable[[], str]] = {
        "model": config,
        "tokenizer": tokenizer,
        "weights": weights,
    }
    return [tried(subject, attempt) for subject, attempt in parts.items()]
