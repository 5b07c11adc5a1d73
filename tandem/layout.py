"""The shape of a KV page: what two nodes must agree on before any page moves between them."""

from typing import Literal

import msgspec

KVDtype = Literal["float64", "float32", "bfloat16", "float16"]
DTYPE_BYTES: dict[str, int] = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class KVLayout(msgspec.Struct, frozen=True, kw_only=True):
    """Pool geometry: `[pages, layers, 2, kv_heads, page_size, head_dim]`, K at index 0, V at 1.

    A page holds all layers, K and V, of `page_size` tokens as one contiguous run of bytes.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    dtype: KVDtype

    @property
    def page_elements(self) -> int:
        """Numbers in one page."""
        return self.num_layers * 2 * self.num_kv_heads * self.page_size * self.head_dim

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return self.page_elements * DTYPE_BYTES[self.dtype]

    def num_pages_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)

    def pool_shape(self, num_pages: int) -> tuple[int, int, int, int, int, int]:
        """Shape of a pool tensor with `num_pages` pages."""
        return (
            num_pages,
            self.num_layers,
            2,
            self.num_kv_heads,
            self.page_size,
            self.head_dim,
        )

    def explain_difference(self, other: "KVLayout") -> str | None:
        """Both values of the first field that differs, in words; None where the layouts agree."""
        for name in self.__struct_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"KV layouts differ in {name}: {mine} here, {theirs} there"
        return None
