"""Names for cached pages: a keyed hash chained over the tokens that a page and its parents hold.

Equal hashes mean equal KV: tenant, model, dtype and page size enter at the root of the chain, so
pages of different tenants or models never match. BLAKE2b (RFC 7693) with a 16-byte digest.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16


class PageHasher:
    """Hashes full pages of token ids for one tenant and one model."""

    def __init__(
        self, *, key: bytes, tenant: str, weights_fingerprint: str, dtype: str, page_size: int
    ) -> None:
        identity = "\0".join([tenant, weights_fingerprint, dtype, str(page_size)])
        self._key = key[:64]
        self._page_size = page_size
        self.root = hashlib.blake2b(
            identity.encode(), digest_size=DIGEST_BYTES, key=self._key
        ).digest()

    def chain(self, token_ids: NDArray[np.int32], parent: bytes | None = None) -> list[bytes]:
        """Hashes of the full pages of `token_ids`, which continue `parent` (None: the root)."""
        return list(self._links(token_ids, parent or self.root))

    def _links(self, token_ids: NDArray[np.int32], parent: bytes) -> Iterator[bytes]:
        data = np.ascontiguousarray(token_ids, dtype="<i4").tobytes()
        stride = 4 * self._page_size
        for begin in range(0, len(data) - stride + 1, stride):
            parent = hashlib.blake2b(
                parent + data[begin : begin + stride], digest_size=DIGEST_BYTES, key=self._key
            ).digest()
            yield parent
