"""Deployments on this machine for benchmarks, and what their nodes say of themselves."""

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from loadgen.checkpoint import Shape, write_checkpoint
from tandem.async_client import AsyncClient
from tandem.launch import LocalCluster
from tandem.messages.membership import NodeLoad
from tandem.status import query_status

DEMO_MODEL = Path(__file__).resolve().parents[2] / "models/demo"
VOCAB_SIZE = 4096
# Twice per second: what a run did is told by then.
HEARTBEAT_WAIT_S = 1.2


class Deployment:
    """A prefill and a decode node with coordinator and gateway; `with` starts and stops them.

    `shape`: random weights of that shape instead of the demo model.
    """

    def __init__(
        self,
        *,
        node_args: Sequence[str] = (),
        coordinator_args: Sequence[str] = (),
        shape: Shape | None = None,
    ) -> None:
        self._node_args = node_args
        self._coordinator_args = coordinator_args
        self._shape = shape
        self._stack = ExitStack()
        self.cluster: LocalCluster

    def __enter__(self) -> "Deployment":
        model = DEMO_MODEL
        if self._shape is not None:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-bench-"))
            model = Path(folder) / "model"
            write_checkpoint(model, self._shape, DEMO_MODEL)
        try:
            self.cluster = self._stack.enter_context(
                LocalCluster(
                    model=str(model),
                    node_args=self._node_args,
                    coordinator_args=self._coordinator_args,
                )
            )
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def client(self) -> AsyncClient:
        """For its gateway."""
        return AsyncClient(self.cluster.gateway_address)


async def node_loads(deployment: Deployment) -> dict[str, NodeLoad]:
    """What each node says of itself, by name, once its last heartbeat has told all of a run."""
    await asyncio.sleep(HEARTBEAT_WAIT_S)
    status = await query_status(deployment.cluster.coordinator_address)
    return {node.node_id: node.load for node in status.nodes if node.load is not None}


async def decode_load(deployment: Deployment) -> NodeLoad:
    """Of its decode node."""
    return (await node_loads(deployment))["decode-0"]
