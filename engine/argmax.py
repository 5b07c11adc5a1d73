"""The largest logit of every row of bfloat16, in one pass over the bits and without the GIL.

As a signed number, the bits of a float compare like the float once those below the sign are turned
over where it is set: key = bits ^ ((bits >> 15) & 0x7fff) in int16. So the largest of V logits is a
maximum of integers, which vectorises; numpy has no bfloat16, and a float32 copy of 32 rows of
32,000 cost 0.25 ms in fresh pages. `engine/sampler.py` says what is wanted of ties and NaN; for all
other types it asks numpy.
"""

import numpy as np
from numpy.typing import NDArray

from engine.noise import compiled

Int16Array = NDArray[np.int16]

INFINITY_KEY = 0x7F80  # what is above is NaN
MINUS_INFINITY_KEY = -0x7F81  # what is below is NaN
BLOCK = 1024  # the first block with the largest key is looked through again


def largest_bfloat16(bits: Int16Array) -> tuple[list[int], list[bool]]:
    """Per row of [R, V] the lowest id of the largest logit, and whether the row has neither NaN nor
    an infinite largest logit; where it has, the id means nothing."""
    ids = np.empty(len(bits), np.int64)
    finite = np.empty(len(bits), np.bool_)
    _largest(bits, ids, finite)
    return ids.tolist(), finite.tolist()


@compiled
def _largest(bits: Int16Array, ids: NDArray[np.int64], finite: NDArray[np.bool_]) -> None:
    for row in range(bits.shape[0]):
        logits = bits[row]
        best, least, begin = np.int16(-0x8000), np.int16(0x7FFF), 0
        for first in range(0, logits.size, BLOCK):
            high, low = _range_of(logits[first : first + BLOCK])
            least = low if low < least else least
            if high > best:
                best, begin = high, first
        finite[row] = least >= MINUS_INFINITY_KEY and MINUS_INFINITY_KEY < best < INFINITY_KEY
        if best == 0:  # equal to -0.0, whose key is -1
            best, begin = np.int16(-1), 0
        while begin < logits.size and _key(logits[begin]) < best:
            begin += 1
        ids[row] = begin


@compiled
def _range_of(logits: Int16Array) -> tuple[np.int16, np.int16]:
    """The largest and the smallest key. All of it in int16 and without `min` and `max`, which are
    not vectorised: 24 us for 32 rows of 32,000 instead of 550."""
    high, low = np.int16(-0x8000), np.int16(0x7FFF)
    for i in range(logits.size):
        key = _key(logits[i])
        high = key if key > high else high
        low = key if key < low else low
    return high, low


@compiled
def _key(bits: np.int16) -> np.int16:
    return np.int16(bits ^ ((bits >> np.int16(15)) & np.int16(0x7FFF)))
