"""Whom load is sent to: Tandem over ZeroMQ, or any OpenAI-compatible server over HTTP.

A target sends one request and measures it on the caller's clock; it retries nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from loadgen.measure import RequestSample, measure_request
from tandem.async_client import AsyncClient, RequestOptions


@dataclass(frozen=True, slots=True)
class Prompted:
    """A request as it is sent: exactly `num_tokens` output tokens are asked for.

    The targets travel with it where both are given; only Tandem reads them.
    """

    prompt_ids: Sequence[int]
    num_tokens: int
    ttft_ms: float | None = None
    tpot_ms: float | None = None


class Target(Protocol):
    """See the module."""

    async def send(self, request: Prompted, since: float) -> RequestSample:
        """Seconds count from `since`, on `time.perf_counter`. Raises TandemError."""


@dataclass(frozen=True, slots=True)
class ZmqTarget:
    """A gateway of ours, through the client library; `options` go with every request."""

    client: AsyncClient
    options: RequestOptions = field(default_factory=RequestOptions)

    async def send(self, request: Prompted, since: float) -> RequestSample:
        """One greedy request."""
        options: RequestOptions = {**self.options}
        if request.ttft_ms is not None and request.tpot_ms is not None:
            options = {"ttft_ms": request.ttft_ms, "tpot_ms": request.tpot_ms, **options}
        return await measure_request(
            self.client, request.prompt_ids, request.num_tokens, since=since, **options
        )
