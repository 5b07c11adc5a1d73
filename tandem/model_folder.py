"""Reads a Hugging Face model folder without torch: config, defaults, files, fingerprints.

Every error is a ValueError that says what to do.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub  # loads what it needs on first use
import msgspec

from tandem.model_config import ModelConfig, RopeScaling, parse_model_config
from tandem.sampling import GenerationDefaults

__all__ = [
    "GenerationDefaults",
    "ModelConfig",
    "RopeScaling",
    "load_generation_defaults",
    "load_model_config",
    "require_tokenizer",
    "resolve_model",
    "safetensors_files",
    "tokenizer_fingerprint",
    "weights_fingerprint",
]

HUB_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
FULL_HASH_BYTES = 64 << 20
NUM_HASH_SAMPLES = 64
HASH_SAMPLE_BYTES = 64 << 10
MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit


class _GenerationFile(msgspec.Struct, frozen=True):
    eos_token_id: int | list[int] | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class _EosField(msgspec.Struct, frozen=True):
    eos_token_id: int | list[int] | None = None


class _ShardIndex(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


def load_model_config(folder: Path) -> ModelConfig:
    """Parse `folder`/config.json.

    ValueError: no such folder, no config.json, or one that `parse_model_config` refuses.
    """
    try:
        return parse_model_config(_read(folder, "config.json"))
    except ValueError as error:
        raise ValueError(f"model folder {folder}: {error}") from error


def load_generation_defaults(folder: Path) -> GenerationDefaults:
    """End-of-text ids and sampling defaults of generation_config.json; ids else of config.json.

    `do_sample: false` means greedy, as in transformers; a file without it leaves that open.
    """
    has_file = (folder / "generation_config.json").exists()
    content = _read(folder, "generation_config.json") if has_file else b"{}"
    try:
        file = msgspec.json.decode(content, type=_GenerationFile)
        eos = file.eos_token_id
        if eos is None:
            eos = msgspec.json.decode(_read(folder, "config.json"), type=_EosField).eos_token_id
    except msgspec.DecodeError as error:
        raise ValueError(
            f"the generation defaults of {folder} cannot be used: {error}. Correct or fetch "
            "generation_config.json and config.json"
        ) from error
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return GenerationDefaults(
        eos_token_ids=tuple(ids),
        temperature=0.0 if file.do_sample is False else file.temperature,
        top_k=file.top_k,
        top_p=file.top_p,
        min_p=file.min_p,
        repetition_penalty=file.repetition_penalty,
    )


def resolve_model(name_or_path: str, download: bool = True) -> Path:
    """The folder of a model: `name_or_path` itself, else a name on the Hugging Face Hub.

    Without `download` only the Hub's local cache is searched. ValueError: no such folder, or no
    such model on the Hub, or the Hub cannot be reached.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise ValueError(
            f"there is no model folder {name_or_path}: check the path, or give a name on the "
            "Hugging Face Hub such as Qwen/Qwen3-0.6B"
        )
    try:
        snapshot = huggingface_hub.snapshot_download(
            name_or_path, allow_patterns=list(HUB_PATTERNS), local_files_only=not download
        )
    except Exception as error:  # its HTTP library's errors share no base class with the others
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name_or_path} is neither a folder here nor a model that could be had from the "
            f"Hugging Face Hub: check the spelling and the network, or give a folder ({reason})"
        ) from error
    return Path(snapshot)


def require_tokenizer(folder: Path) -> None:
    """Raise ValueError where `folder` has no tokenizer."""
    present = {path.name for path in _existing(folder).iterdir()}
    if present & {"tokenizer.json", "tokenizer.model"} or {"vocab.json", "merges.txt"} <= present:
        return
    raise ValueError(
        f"model folder {folder} has no tokenizer (tokenizer.json): add the tokenizer files that "
        "the model was trained with, for example with "
        "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
    )


def safetensors_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a folder: model.safetensors, else the shards of the index by name."""
    single = _existing(folder) / "model.safetensors"
    if single.exists():
        return (single,)
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        raise ValueError(
            f"model folder {folder} has neither model.safetensors nor "
            "model.safetensors.index.json: convert the weights with save_pretrained; other formats "
            "are not read because loading them can run code"
        )
    try:
        weight_map = msgspec.json.decode(index.read_bytes(), type=_ShardIndex).weight_map
    except msgspec.DecodeError as error:
        raise ValueError(f"{index} cannot be used: {error}. Fetch the file again") from error
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index} names {name!r}, which is not a file beside it: correct it")
        if not (folder / name).exists():
            raise ValueError(f"model folder {folder} lacks the shard {name}: fetch it again")
    return tuple(folder / name for name in names)


def weights_fingerprint(folder: Path) -> str:
    """32 hex digits over config.json and the weights: nodes with different ones must not mix.

    Files up to 64 MiB are hashed whole; of larger ones the size, the header and 64 evenly spaced
    chunks of 64 KiB, so that 100 GB take milliseconds. Fine-tunes of one model differ in nearly
    every chunk; a change confined to the bytes between chunks goes unseen.
    """
    digest = hashlib.blake2b(_read(folder, "config.json"), digest_size=16)
    for path in safetensors_files(folder):
        digest.update(f"\0{path.name}\0{path.stat().st_size}\0".encode())
        for part in _content_sample(path):
            digest.update(part)
    return digest.hexdigest()


def tokenizer_fingerprint(folder: Path) -> str:
    """32 hex digits over all tokenizer files of the folder, chat template included."""
    require_tokenizer(folder)
    digest = hashlib.blake2b(digest_size=16)
    for path in (folder / name for name in TOKENIZER_FILES):
        if path.exists():
            digest.update(f"\0{path.name}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _content_sample(path: Path) -> Iterator[bytes]:
    """All of a small file; header and evenly spaced chunks, first and last included, of another."""
    num_bytes = path.stat().st_size
    if num_bytes <= FULL_HASH_BYTES:
        yield path.read_bytes()
        return
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > min(num_bytes, MAX_HEADER_BYTES):
            raise ValueError(f"{path} is not a safetensors file or is damaged: fetch it again")
        yield file.read(header_bytes)
        first = file.tell()
        span = num_bytes - HASH_SAMPLE_BYTES - first
        for sample in range(NUM_HASH_SAMPLES):
            file.seek(first + span * sample // (NUM_HASH_SAMPLES - 1))
            yield file.read(HASH_SAMPLE_BYTES)


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise ValueError(f"there is no model folder {folder}: check the path")
    return folder


def _read(folder: Path, name: str) -> bytes:
    path = _existing(folder) / name
    if not path.exists():
        raise ValueError(
            f"{folder} has no {name}: give the folder of a Hugging Face model (config.json, "
            "*.safetensors, tokenizer.json)"
        )
    return path.read_bytes()
