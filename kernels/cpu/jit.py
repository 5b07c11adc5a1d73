"""`compiled`: numba without the GIL, cached on disk until any file of this folder changes.

numba's own cache looks at the file of the function only and would keep code that has inlined an
older version of another file's intrinsics.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from numba import njit
from numba.core.caching import FunctionCache

P = ParamSpec("P")
R = TypeVar("R")
Dispatcher = Any  # numba ships no types


def _hash_of_folder() -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


FOLDER_HASH = _hash_of_folder()


class _FolderCache(FunctionCache):  # type: ignore[misc]  # numba ships no types
    """numba's cache with the hash of the folder in every key."""

    def _index_key(self, sig: object, codegen: object) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), FOLDER_HASH)


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Typed `numba.njit`; floating point is neither reordered nor contracted (numba's default).

    A division by zero is infinite or NaN, as on every other device: a check that may raise would
    keep loops from being vectorised.
    """
    return _cached(njit(nogil=True, error_model="numpy")(function), function)


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """`compiled`, and always inlined: a call that passes arrays costs about 50 stores."""
    return _cached(njit(nogil=True, error_model="numpy", forceinline=True)(function), function)


def _cached(dispatcher: Dispatcher, function: Callable[P, R]) -> Callable[P, R]:
    dispatcher._cache = _FolderCache(function)
    return cast(Callable[P, R], dispatcher)
