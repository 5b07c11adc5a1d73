"""Writes a checkpoint as GGUF: what llama.cpp loads, the tokenizer included.

llama.cpp rotates neighbouring values where Hugging Face's checkpoints rotate the two halves of a
head, so rows of the query and key matrices change places.
"""

import argparse
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def export(folder: Path, path: Path, dtype: str) -> None:
    """Write `path` with matrices in `dtype` (float32 or bfloat16) and norms in float32."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(path), "llama")
    _add_sizes(writer, config)
    _add_tokenizer(writer, folder, config)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, values in _weights(folder / "model.safetensors"):
        kind = name.split(".")[-2]
        if kind in heads:
            rows, columns = values.shape
            values = values.reshape(heads[kind], 2, rows // heads[kind] // 2, columns)
            values = values.swapaxes(1, 2).reshape(rows, columns)
        if dtype == "float32" or values.ndim == 1:
            writer.add_tensor(_name(name), _as_float32(values))
        else:
            kind_of_data = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(
                _name(name), np.ascontiguousarray(values).view(np.uint8), raw_dtype=kind_of_data
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: Any, config: dict[str, Any]) -> None:  # noqa: ANN401
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:  # noqa: ANN401
    document = json.loads((folder / "tokenizer.json").read_text())
    by_id = {number: token for token, number in document["model"]["vocab"].items()}
    special = {each["id"]: each["content"] for each in document["added_tokens"]}
    ids = range(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([special.get(each) or _shown(each, by_id[each]) for each in ids])
    writer.add_token_types(
        [gguf.TokenType.CONTROL if each in special else gguf.TokenType.NORMAL for each in ids]
    )
    merges = document["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def _shown(number: int, token: str) -> str:
    """ASCII as it is: the server holds back parts of characters, and their ids with them."""
    # Byte-level BPE writes bytes 0 to 32 and 127 as characters 256 to 289.
    is_ascii = all(ord(each) < 127 or 256 <= ord(each) <= 289 for each in token)
    return token if is_ascii else f"[{number}]"


def _weights(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Names and values, bfloat16 as its bits: numpy has no such type."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, "r", offset=8 + length)
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            kind = {"F32": np.float32, "BF16": np.uint16}[entry["dtype"]]
            yield name, data[begin:end].view(kind).reshape(entry["shape"])


def _as_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    if values.dtype == np.float32:
        return np.ascontiguousarray(values)
    return (values.astype(np.uint32) << 16).view(np.float32)


def _name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[rest]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("path", type=Path)
    parser.add_argument("dtype")
    args = parser.parse_args()
    export(args.folder, args.path, args.dtype)
