"""The demo model as a Hugging Face folder: its configuration, its tokenizer and saving it whole.

A save first writes a folder beside the target and then renames file by file, so a reader never
meets half a file.
"""

import copy
import json
import os
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from scripts.demo_model.corpus import END_OF_TEXT

CONTEXT_TOKENS = 4096
# The library opens many documents with comment lines, so a wish reads like one of them.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- for line in (messages | last).content.strip().split('\\n') %}{{ '# ' + line + '\\n' }}"
    "{%- endfor %}"
)


def demo_config(vocab_size: int, hidden_size: int, num_layers: int) -> LlamaConfig:
    """Llama with heads of 64, two query heads for a KV head and tied embeddings."""
    num_heads = hidden_size // 64
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 11 // 4,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=max(1, num_heads // 2),
        head_dim=64,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        attn_implementation="sdpa",
    )


def save_checkpoint(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Replaces model and tokenizer files in `folder`; the weights are rounded to bfloat16."""
    fresh = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(fresh, ignore_errors=True)
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    rounded.generation_config = GenerationConfig(
        bos_token_id=0, eos_token_id=0, pad_token_id=0, do_sample=True, temperature=0.8, top_p=0.95
    )
    rounded.save_pretrained(fresh)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(fresh)
    _name_portable_tokenizer_class(fresh / "tokenizer_config.json")
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(fresh.iterdir()):
        path.chmod(0o644)
        os.replace(path, folder / path.name)
    fresh.rmdir()


def _name_portable_tokenizer_class(path: Path) -> None:
    """Names the class by the name that transformers 4 and 5 both know."""
    settings = json.loads(path.read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2) + "\n")
