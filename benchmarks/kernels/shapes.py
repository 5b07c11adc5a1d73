"""Weight shapes of the two Llama-shaped checkpoints that speed is measured on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """Sizes of a checkpoint; heads are 64 wide."""

    name: str
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    inner: int
    vocab: int = 32000
    head_dim: int = 64

    def products(self) -> dict[str, tuple[int, int]]:
        """Product -> shape [N, K] of its weight."""
        attention = self.num_heads * self.head_dim
        return {
            "qkv": (attention + 2 * self.num_kv_heads * self.head_dim, self.hidden),
            "o": (self.hidden, attention),
            "gate_up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
            "head": (self.vocab, self.hidden),
        }


LLAMA_35M = LlamaShape("35M", 512, 8, 8, 4, 1408)
LLAMA_300M = LlamaShape("300M", 1024, 20, 16, 8, 2816)
