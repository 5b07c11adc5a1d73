"""Classification heads in config.json; encoders are told apart from what is not supported."""

import json
from typing import Any

import pytest

from tandem.model_config import parse_model_config

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 128,
}


def parse(name: str, **fields: Any) -> Any:
    return parse_model_config(json.dumps({"architectures": [name], **SIZES, **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "num_labels"),
    [
        ({}, 2),
        ({"num_labels": 5}, 5),
        ({"id2label": {"0": "LABEL_0"}}, 1),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 2}, 3),
    ],
)
def test_a_head_has_as_many_labels_as_are_named(fields: dict[str, Any], num_labels: int) -> None:
    config = parse("Qwen2ForSequenceClassification", **fields)
    assert config.num_labels == num_labels
    assert config.architecture == "Qwen2ForCausalLM"
    assert config.qkv_bias
    assert parse("Qwen2ForCausalLM", **fields).num_labels == 0


@pytest.mark.parametrize("name", ["BertModel", "XLMRobertaForSequenceClassification"])
def test_an_encoder_is_called_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}', an encoder, and only decoders are served"):
        parse(name)


def test_other_classifiers_are_not_supported() -> None:
    with pytest.raises(ValueError, match="not supported: use a model with one of Llama"):
        parse("GPT2ForSequenceClassification")
