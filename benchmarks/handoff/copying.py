"""What moving pages between two pools of one host takes of a processor: copy, checksums.

The very functions of the bulk thread, between pools that no cache holds. Processor time of this
thread, the least of several passes, so that others on the machine count for little.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.handoff.cases import NUM_PROMPT, cases
from benchmarks.options import Options
from benchmarks.report import Report, Table
from kv_transfer.checksum import ChunkHasher, PageArray, hash_pages
from kv_transfer.transport import SLICE_BYTES, copy_pages

POOL_BYTES = 192 << 20
NUM_PASSES = 5


@dataclass(frozen=True, slots=True)
class CopyCosts:
    """Seconds per byte: of the copy alone, with its checksum, of the owner's verification."""

    copy: float
    with_checksum: float
    verification: float


def copy_costs(page_bytes: int, pool_bytes: int = POOL_BYTES) -> CopyCosts:
    """For pages of this size."""
    num_pages = max(2, pool_bytes // page_bytes)
    source, target = (np.full((num_pages, page_bytes), n, np.uint8) for n in (1, 2))
    hasher = ChunkHasher((bytes(16), 1), 0, 0, num_pages)
    pages = tuple(reversed(range(num_pages)))

    def seconds_per_byte(move: Callable[[tuple[int, ...]], None]) -> float:
        best_s = min(_pass_s(move, pages, page_bytes) for _ in range(NUM_PASSES))
        return best_s / (num_pages * page_bytes)

    def copy(part: tuple[int, ...], hasher: ChunkHasher | None = None) -> None:
        copy_pages(target, part, source, part, hasher)

    return CopyCosts(
        copy=seconds_per_byte(copy),
        with_checksum=seconds_per_byte(lambda part: copy(part, hasher)),
        verification=seconds_per_byte(lambda part: _verify(hasher, target, part)),
    )


def _verify(hasher: ChunkHasher, pages: PageArray, part: tuple[int, ...]) -> None:
    hash_pages(hasher, pages, part)


def _pass_s(
    move: Callable[[tuple[int, ...]], None], pages: Sequence[int], page_bytes: int
) -> float:
    num_slice = max(1, SLICE_BYTES // page_bytes)
    parts = [tuple(pages[at : at + num_slice]) for at in range(0, len(pages), num_slice)]
    began_s = time.thread_time()
    for part in parts:
        move(part)
    return time.thread_time() - began_s


def run(options: Options) -> Report:
    """For the models of the exposed times."""
    rows = []
    for case in cases(options):
        costs = copy_costs(case.page_bytes, (4 << 20) if options.quick else POOL_BYTES)
        num_bytes = NUM_PROMPT * case.token_bytes
        rows.append(
            {
                "name": case.name,
                "token_bytes": case.token_bytes,
                "page_bytes": case.page_bytes,
                "copy_ms": round(num_bytes * costs.copy * 1e3, 2),
                "with_checksum_ms": round(num_bytes * costs.with_checksum * 1e3, 2),
                "verification_ms": round(num_bytes * costs.verification * 1e3, 2),
            }
        )
    header = ("model", "bytes/token", "page KiB", "copy ms", "with checksum", "verification")
    table = Table(
        f"shared memory, {NUM_PROMPT} tokens",
        header,
        [
            [
                str(row["name"]),
                str(row["token_bytes"]),
                f"{case.page_bytes / 1024:.0f}",
                *(str(row[key]) for key in ("copy_ms", "with_checksum_ms", "verification_ms")),
            ]
            for case, row in zip(cases(options), rows, strict=True)
        ],
    )
    notes = ("processor time; while a prompt computes, all but its last chunk is hidden behind it",)
    return Report([table], notes, {"copies": rows})
