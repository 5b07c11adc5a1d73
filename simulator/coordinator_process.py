"""A simulated coordinator: the real core, a listener, a tick."""

import msgspec

from coordinator.actions import Action, Note, Send
from coordinator.config import CoordinatorConfig
from coordinator.core import Coordinator
from coordinator.server import TICK_S
from simulator.clock import Clock
from simulator.network import Network
from simulator.node_process import COORDINATOR
from simulator.process import Process
from tandem.messages.membership import FromOperator


class CoordinatorProcess:
    """One incarnation."""

    def __init__(
        self, incarnation: int, clock: Clock, network: Network, *, clock_offset_s: float
    ) -> None:
        self.process = Process(
            clock, f"coordinator#{incarnation}", clock_offset_s=clock_offset_s, drift=0.0
        )
        self._network = network
        # Seeds look for losses, not for delay: nodes are slow, frozen and wedged on purpose.
        config = CoordinatorConfig(early_rejection="off")
        self.core = Coordinator(config, incarnation=incarnation, now=self.process.now)
        network.listen(self.process, COORDINATOR, self._from_peer)
        self.process.every(TICK_S, self._tick)

    def _from_peer(self, peer: bytes, message: msgspec.Struct) -> None:
        self._execute(self.core.handle(peer, message, self.process.now))  # type: ignore[arg-type]

    def order(self, message: FromOperator) -> None:
        """An operator says something, and does not wait for the answer."""
        self._from_peer(b"operator", message)

    def _tick(self) -> None:
        self._execute(self.core.tick(self.process.now))

    def _execute(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._network.answer(self.process, COORDINATOR, action.peer, action.message)
            elif isinstance(action, Note):
                self.process.clock.note(f"coordinator: {action.text}")
