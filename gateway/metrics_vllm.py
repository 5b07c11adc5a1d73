"""A gateway's numbers under vLLM's names: as one engine, whose KV pool is the deployment's."""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.metrics_core import Metric as Family

from gateway.pool_view import PoolView
from tandem import metrics_vllm as v
from tandem.exposition import family


class Live(Protocol):
    """What is read of the ledger."""

    def __len__(self) -> int: ...

    @property
    def num_waiting(self) -> int:
        """Live requests without a token."""

    @property
    def num_output_tokens(self) -> int:
        """Tokens delivered since the start."""


def vllm_families(labels: tuple[str, str], ledger: Live, pools: PoolView) -> Iterator[Family]:
    """`labels` are model name and gateway. Histograms and ends are counted where they happen."""
    yield family(v.RUNNING, {labels: len(ledger) - ledger.num_waiting})
    yield family(v.WAITING, {labels: ledger.num_waiting})
    yield family(v.OUTPUT_TOKENS, {labels: ledger.num_output_tokens})
    if pools.kv_used_share is not None:
        yield family(v.KV_USAGE, {labels: pools.kv_used_share})
    if pools.page_size is not None:
        info = (*labels, str(pools.page_size), str(pools.num_pages))
        yield family(v.CACHE_CONFIG, {info: 1.0})
