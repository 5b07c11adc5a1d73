"""Measurements of one part that do not depend on each other: one that fails costs itself alone."""

import contextlib
import gc
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator

import torch

from benchmarks.gpu_all.setting import Table

Attempt = tuple[str, Callable[[], Table]]


def one_by_one(attempts: Iterable[Attempt]) -> Iterator[Table]:
    """The table of each attempt as it comes; RuntimeError at the end names those that failed.

    An error of the device stays in its process: then all that follow fail, too.
    """
    failed = []
    for name, measure in attempts:
        try:
            yield measure()
        except Exception as error:  # noqa: BLE001  # named below, once the others have run
            traceback.print_exc(file=sys.stdout)
            failed.append(f"{name}: {type(error).__name__}: {error}")
        gc.collect()
        with contextlib.suppress(RuntimeError):  # where the device failed
            torch.cuda.empty_cache()
    if failed:
        raise RuntimeError("; ".join(failed))
