"""Who is told of requests beside their clients: metrics, and traces where they are wanted."""

import asyncio

from gateway.actions import NewRequest
from gateway.metrics import GatewayMetrics
from gateway.tracing import RequestTraces
from tandem.messages.client import Done
from tandem.messages.common import ErrorCode


class Observers:
    """See the module."""

    def __init__(self, metrics: GatewayMetrics, traces: RequestTraces | None) -> None:
        self.metrics = metrics
        self._traces = traces

    def began(self, new: NewRequest) -> None:
        """A request enters the ledger."""
        if self._traces is not None:
            self._traces.began(new)

    def refused(self, code: ErrorCode) -> None:
        """A request, or a call over HTTP before it became one, never entered it."""
        self.metrics.refused(code)

    def ended(self, done: Done) -> None:
        """A request of the ledger's ended."""
        self.metrics.ended(done)
        if self._traces is not None:
            self._traces.ended(done)

    async def close(self) -> None:
        """Send what is left."""
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)
