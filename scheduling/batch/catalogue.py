"""Batch policies by name, with typed options. Pure."""

from collections.abc import Callable

from scheduling.batch.fifo import FifoPolicy
from scheduling.batch.static import StaticPolicy
from scheduling.views import BatchPolicy

BATCH_POLICIES: dict[str, Callable[[], BatchPolicy]] = {
    "fifo": FifoPolicy,
    "static": lambda: StaticPolicy(keep_finished_rows=True),
    "static-dropping": lambda: StaticPolicy(keep_finished_rows=False),
}


def make_batch_policy(name: str) -> BatchPolicy:
    """The policy of that name. Raises ValueError listing the names on offer."""
    if name not in BATCH_POLICIES:
        raise ValueError(f"unknown batch policy {name!r}; choose one of {sorted(BATCH_POLICIES)}")
    return BATCH_POLICIES[name]()
