"""One config-driven decoder for Llama 2 and 3, Mistral, Qwen2, Qwen2.5 and Qwen3.

The families differ in biases, head norms, RoPE scaling, windows and tied embeddings only, which all
are fields of `ModelConfig`. Weights come by their Hugging Face names; everything about a step
is in the `Batch` argument; the operations are an `Ops` bundle. Logits are computed for the rows
that sample, and for no others. A checkpoint with a classification head has that in place of logits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from engine.batch import Batch, Rows
from engine.ops import Linear, Ops
from engine.rotary import rotary_table
from engine.step_threads import Written, nobody_waits
from tandem.layout import KVLayout
from tandem.model_config import ModelConfig, ModelDtype

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """The prepared weights of one layer: q, k, v and gate, up are fused along their outputs."""

    input_norm: Rows
    qkv: Linear
    q_norm: Rows | None
    k_norm: Rows | None
    output: Linear
    mlp_norm: Rows
    gate_up: Linear
    down: Linear
    window: int | None


@dataclass(frozen=True, slots=True)
class States:
    """Rows behind the last layer [T, hidden]; the last norm is of their sum."""

    hidden: Rows
    residual: Rows


class Decoder:
    """tokens -> logits; K and V of every row go to the pages that the batch names."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops, max_model_len: int) -> None:
        self._config = config
        self._ops = ops
        norm = weights["model.norm.weight"]
        self._embedding = ops.load(weights["model.embed_tokens.weight"])
        self._norm = ops.load(norm)
        self._head = ops.make_linear(_head(config, weights))
        self._layers = tuple(_layers(config, weights, ops))
        self._rotary = ops.load(rotary_table(config, max_model_len).to(norm.device))
        self._scale = config.head_dim**-0.5

    def forward(self, batch: Batch, pool: torch.Tensor) -> torch.Tensor:
        """Logits [N, vocab] of `batch.sample_rows`; pool [P, L, 2, Hkv, page, D] is written to."""
        return self.head(self.normed(self.states(batch, pool), batch.sample_rows))

    def states(self, batch: Batch, pool: torch.Tensor, written: Written = nobody_waits) -> States:
        """All rows of the batch behind the last layer; the pool is written to.

        `written` is called in each layer once its K and V are in the pool, before they are read.
        """
        ops, eps = self._ops, self._config.rms_norm_eps
        pages = ops.load(pool)
        shape = batch.num_tokens, self._config.num_heads * self._config.head_dim
        hidden = ops.embed(batch.token_ids, self._embedding)
        residual: Rows | None = None
        for index, layer in enumerate(self._layers):
            normed, residual = ops.rms_norm(hidden, layer.input_norm, eps, residual)
            query = self._write(layer, index, layer.qkv(normed), batch, pages)
            written()
            attended = ops.attention(query, pages, index, batch, self._scale, layer.window)
            hidden = layer.output(attended.reshape(shape))
            normed, residual = ops.rms_norm(hidden, layer.mlp_norm, eps, residual)
            hidden = layer.down(ops.silu_and_mul(layer.gate_up(normed)))
        assert residual is not None, "a decoder has at least one layer"
        return States(hidden, residual)

    def normed(self, states: States, rows: Rows | slice) -> Rows:
        """Final hidden states [N, hidden] of some rows, for `head`."""
        eps = self._config.rms_norm_eps
        return self._ops.rms_norm(states.hidden[rows], self._norm, eps, states.residual[rows])[0]

    def hidden(self, states: States, rows: slice) -> torch.Tensor:
        """Final hidden states [N, hidden] of some rows, for all else."""
        return self._ops.unload(self.normed(states, rows))

    def head(self, normed: Rows) -> torch.Tensor:
        """Logits [N, vocab] of final hidden states, or [N, labels] of a classification head."""
        return self._ops.unload(self._head(normed))

    @property
    def takes_arrays(self) -> bool:
        """Whether a batch is of numpy arrays, not of tensors."""
        return self._ops.takes_arrays

    @property
    def vocab_size(self) -> int:
        """Of the language-model head."""
        return self._config.vocab_size

    @property
    def num_labels(self) -> int:
        """Of the classification head; 0: it has none, and generates."""
        return self._config.num_labels

    def _write(self, layer: DecoderLayer, index: int, qkv: Rows, batch: Batch, pages: Rows) -> Rows:
        """Writes the rows' K and V; qkv [T, (Hq + 2 Hkv) D] -> rotated queries [T, Hq, D]."""
        return self._ops.rope_write(
            qkv,
            self._rotary,
            batch.positions,
            pages,
            index,
            batch.page_ids,
            batch.offsets,
            self._config.num_heads,
            layer.q_norm,
            layer.k_norm,
            self._config.rms_norm_eps,
        )


def kv_layout(config: ModelConfig, page_size: int, dtype: ModelDtype) -> KVLayout:
    """The pool geometry of a model whose KV is kept in `dtype`."""
    return KVLayout(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        page_size=page_size,
        dtype=dtype,
    )


def _head(config: ModelConfig, weights: Weights) -> torch.Tensor:
    if config.num_labels:
        return weights["score.weight"]
    return weights["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]


def _layers(config: ModelConfig, weights: Weights, ops: Ops) -> Iterator[DecoderLayer]:
    for index, window in enumerate(config.sliding_windows):
        prefix = f"model.layers.{index}."

        def linear(*names: str, biased: bool, prefix: str = prefix) -> Linear:
            """One product for several weights [N_i, K], side by side in its output."""
            parts = [weights[f"{prefix}{name}.weight"] for name in names]
            biases = [weights[f"{prefix}{name}.bias"] for name in names] if biased else None
            weight = parts[0] if len(parts) == 1 else torch.cat(parts)
            return ops.make_linear(weight, None if biases is None else torch.cat(biases))

        def norm(name: str, prefix: str = prefix) -> Rows:
            return ops.load(weights[f"{prefix}{name}.weight"])

        attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        yield DecoderLayer(
            input_norm=norm("input_layernorm"),
            qkv=linear(*attention, biased=config.qkv_bias),
            q_norm=norm("self_attn.q_norm") if config.qk_norm else None,
            k_norm=norm("self_attn.k_norm") if config.qk_norm else None,
            output=linear("self_attn.o_proj", biased=config.output_bias),
            mlp_norm=norm("post_attention_layernorm"),
            gate_up=linear("mlp.gate_proj", "mlp.up_proj", biased=config.mlp_bias),
            down=linear("mlp.down_proj", biased=config.mlp_bias),
            window=window,
        )
