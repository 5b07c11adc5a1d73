"""A simulated gateway: the real ledger, links to nodes and the coordinator, a listener for clients.

Links to nodes are kept as `gateway.node_links` keeps them.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from gateway.actions import Action, CloseNode, ToClient, ToCoordinator, ToNode
from gateway.admission import Offer, Origin, Rejected, admit, check_submit
from gateway.clients import Cut, Limits, Sessions
from gateway.ledger import Identity, Ledger
from gateway.server import BEAT_S, TICK_S
from simulator.clock import Clock
from simulator.knobs import Knobs
from simulator.network import Link, Network
from simulator.node_process import COORDINATOR
from simulator.node_setup import EOS, model_identity
from simulator.oracle import letters
from simulator.process import Process
from tandem.messages.client import CancelRequest, Received, Refused, Resume, Submit
from tandem.messages.common import NodeRef
from tandem.messages.placement import GatewayHello
from tandem.messages.serving import Cancel, PeerBeat
from tandem.sampling import GenerationDefaults

CLIENT_SILENCE_S = 6.0


@dataclass(slots=True, eq=False)
class _NodeLink:
    node: NodeRef
    link: Link


class GatewayProcess:
    """One incarnation."""

    def __init__(
        self,
        gateway_id: str,
        incarnation: int,
        clock: Clock,
        network: Network,
        knobs: Knobs,
        rng: random.Random,
        *,
        clock_offset_s: float,
    ) -> None:
        self.process = Process(
            clock, f"{gateway_id}#{incarnation}", clock_offset_s=clock_offset_s, drift=0.0
        )
        self.gateway_id = gateway_id
        self.address = f"sim://{gateway_id}"
        self._incarnation = incarnation
        self._identity = f"gateway/{gateway_id}/{incarnation}".encode()
        self._network = network
        self._knobs = knobs
        self._rng = rng
        self.ledger = Ledger(Identity(gateway_id, incarnation, "w", (EOS,)), letters_of)
        self._sessions = Sessions(Limits(silence_s=CLIENT_SILENCE_S), lambda client: None)
        model = model_identity(knobs)
        self._offer = Offer(
            model=model.served_name,
            vocab_size=model.vocab_size,
            max_model_len=model.max_model_len,
            defaults=GenerationDefaults(eos_token_ids=(EOS,)),
        )
        self._nodes: dict[str, _NodeLink] = {}
        self._beat = PeerBeat(gateway_id=gateway_id, incarnation=incarnation)
        network.listen(self.process, self.address, self._from_client)
        self._coordinator = network.dial(
            self.process, self._identity, COORDINATOR, self._from_coordinator
        )
        self.process.every(TICK_S, self._tick)
        self.process.every(BEAT_S, self._say_hello)

    # --- what comes in ----------------------------------------------------------------------

    def _from_client(self, client: bytes, message: msgspec.Struct) -> None:
        now = self.process.now
        match message:
            case Submit():
                self._submit(client, message)
            case CancelRequest(request_id=request_id):
                owner = self._sessions.owner_of(client, request_id, now)
                if owner is not None:
                    self._execute(self.ledger.cancel(owner, request_id, now))
            case Received():
                self._execute_sessions(self._sessions.received(client, message, now))
            case Resume():
                self._execute_sessions(self._sessions.resume(client, message, now))

    def _submit(self, client: bytes, submit: Submit) -> None:
        origin = Origin(
            client=client,
            request_id=self._rng.randbytes(16),
            random_seed=self._rng.getrandbits(64),
            received=self.process.now,
            received_unix_s=0.0,
        )
        assert submit.prompt_ids is not None
        try:
            check_submit(submit, self._offer)
            new = admit(submit, submit.prompt_ids, self._offer, origin)
        except Rejected as rejected:
            refused = Refused(label=submit.label, code=rejected.code, message=str(rejected))
            self._network.answer(self.process, self.address, client, refused)
            return
        self._execute(self.ledger.submit(new, self.process.now))

    def _from_coordinator(self, message: msgspec.Struct) -> None:
        self._execute(self.ledger.from_coordinator(message, self.process.now))

    def _tick(self) -> None:
        now = self.process.now
        self._execute(self.ledger.tick(now))
        self._execute_sessions(self._sessions.tick(now))

    def _say_hello(self) -> None:
        hello = GatewayHello(
            gateway_id=self.gateway_id,
            incarnation=self._incarnation,
            model=model_identity(self._knobs),
            num_live_requests=len(self.ledger),
            nodes=self.ledger.nodes,
        )
        self._network.send(self._coordinator, hello)
        for entry in self._nodes.values():
            self._network.send(entry.link, self._beat)

    # --- what goes out ----------------------------------------------------------------------

    def _execute(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case ToClient(client, message):
                    told = self._sessions.tell(client, message, self.process.now)
                    self._execute_sessions(told)
                case ToNode(node, message):
                    self._send(node, message)
                case ToCoordinator(message):
                    self._network.send(self._coordinator, message)
                case CloseNode(node_id, epoch):
                    entry = self._nodes.get(node_id)
                    if entry is not None and entry.node.epoch <= epoch:
                        self._nodes.pop(node_id).link.is_open = False

    def _execute_sessions(self, actions: Iterable[ToClient | Cut]) -> None:
        for action in actions:
            match action:
                case ToClient(client, message):
                    if not self._network.answer(self.process, self.address, client, message):
                        self._sessions.unreachable(client)
                case Cut(owner, request_id):
                    self.process.clock.reach("client cut")
                    self._execute(self.ledger.cancel(owner, request_id, self.process.now))

    def _send(self, node: NodeRef, message: msgspec.Struct) -> None:
        known = self._nodes.get(node.node_id)
        if known is not None and known.node.incarnation == node.incarnation:
            known.node = node if node.epoch > known.node.epoch else known.node
        elif known is not None and known.node.epoch >= node.epoch:
            if (
                not isinstance(message, Cancel)
                or known.node.control_address != node.control_address
            ):
                return
        else:
            if known is not None:
                known.link.is_open = False
            known = self._dial(node)
        self._network.send(known.link, message)

    def _dial(self, node: NodeRef) -> _NodeLink:
        link = self._network.dial(
            self.process,
            self._identity,
            node.control_address,
            lambda message: self._from_node(entry, message),
        )
        entry = self._nodes[node.node_id] = _NodeLink(node, link)
        self._network.send(link, self._beat)
        return entry

    def _from_node(self, entry: _NodeLink, message: msgspec.Struct) -> None:
        self._execute(self.ledger.from_node(entry.node, message, self.process.now))


def letters_of(ids: object) -> str:
    """The detokenizer."""
    return letters(list(ids))  # type: ignore[call-overload]
