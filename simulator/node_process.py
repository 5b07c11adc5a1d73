"""A simulated node: its real core and membership, a fake runner over real bytes, a thin shell.
I/O goes on while a step is computed, and the core waits, as in a real node."""

from collections import deque
from collections.abc import Callable

import msgspec
import numpy as np

from decode_node.guest import DecodeGuest
from decode_node.preemption import Preemption, PreemptionOptions, Swap
from kv_transfer import actions as kv
from kv_transfer.incoming import IncomingTransfers
from kv_transfer.outgoing import OutgoingTransfers
from node.actions import CacheChanged, NodeAction, NodeNotice, Reply, SendToNode
from node.core import (
    Admitted,
    CacheWanted,
    Event,
    FromBulk,
    FromPeer,
    GatewaySilent,
    Limits,
    NodeCore,
    RolesChanged,
    Step,
)
from node.drain import Drain
from node.emitter import Emitter
from node.fake_runner import FAKE_LAYOUT, FakeRunner
from node.growth import Overcommit
from node.ledger import PageLedger
from node.membership import (
    DrainWanted,
    Forgotten,
    Joined,
    Membership,
    RolesOrdered,
    SnapshotWanted,
    TurnedAway,
)
from node.page_store import HostPageStore
from node.resident import Resident
from node.shell import GATEWAY_DEAD_S, GATEWAY_SILENT_S
from node.shell import TICK_S as IO_TICK_S
from node.state import NodeIdentity, NodeState
from node.step_times import StepTimes
from prefill_node.role import SharedPrefill
from scheduling.costs import UNKNOWN_COSTS
from scheduling.prefill.fifo import FifoPrefill
from scheduling.views import Services
from simulator.bulk import BulkSide, Surroundings
from simulator.clock import Clock, Violation
from simulator.knobs import Knobs
from simulator.network import Network
from simulator.node_setup import EOS, Directory, NodeSetup, model_identity
from simulator.owners import Owners
from simulator.process import Process
from simulator.rude_policy import make_policy
from tandem.messages.handoff import FromWriter, OwnerWelcome, Reserve, TransportOffer, WriterHello
from tandem.messages.membership import NodeHello, NodeLoad, RoleWeights
from tandem.messages.serving import PeerBeat

COORDINATOR = "sim://coordinator"
IN_CORE = (CacheChanged, NodeNotice, Reply, SendToNode)
WRITER_EVENTS = (kv.PagesWritten, kv.WriteFailed, kv.PagesRead, kv.ReadFailed)


class NodeProcess:
    """See the module."""

    def __init__(
        self,
        setup: NodeSetup,
        clock: Clock,
        network: Network,
        knobs: Knobs,
        around: Surroundings,
        directory: Directory,
    ) -> None:
        self.setup = setup
        name = f"{setup.node_id}#{setup.incarnation}"
        self.process = Process(clock, name, clock_offset_s=setup.clock_offset_s, drift=setup.drift)
        self.address = f"sim://{setup.node_id if knobs.keeps_address else name}"
        self.identity = f"node/{setup.node_id}/{setup.incarnation}".encode()
        self.slowness = 1.0
        self.wedged_until = 0.0
        self.on_left: Callable[[], None] = lambda: None
        self._network = network
        self._knobs = knobs
        self._directory = directory
        self._weights = RoleWeights(
            prefill=knobs.roles[setup.index][0], decode=knobs.roles[setup.index][1]
        )
        self._make_core()
        self.bulk = BulkSide(
            self.process, self.identity, self.pool, self.ledger, around, self._from_bulk
        )
        directory.sides[name] = self.bulk
        self.owners = Owners(
            self.process,
            network,
            self.identity,
            hello=self._writer_hello,
            open_owner=self._open_owner,
            close_owner=self.bulk.close_peer,
            offer=self.offer,
        )
        self.membership = Membership(self._hello())
        self._admitted_writers: set[bytes] = set()
        self._events: deque[Event] = deque()
        self._is_computing = False
        self._is_round_due = False
        self._round_at = self.process.now
        self._times = StepTimes()
        self._load = self.core.load(0.0)
        self._gateways_heard_at: dict[bytes, float] = {}
        self._silent: set[bytes] = set()
        self.drain: Drain | None = None
        network.listen(self.process, self.address, self._from_peer)
        self._coordinator = network.dial(
            self.process, self.identity, COORDINATOR, self._from_coordinator
        )
        self.process.every(IO_TICK_S, self._io_tick)
        self.process.every(knobs.tick_s, self._tick)

    def _make_core(self) -> None:
        knobs, setup = self._knobs, self.setup
        num_pages = knobs.pages[setup.index]
        self.pool = np.full((num_pages, FAKE_LAYOUT.page_bytes), 0xDB, np.uint8)
        self.ledger = PageLedger(num_pages)
        identity = NodeIdentity(
            node_id=setup.node_id,
            incarnation=setup.incarnation,
            model=model_identity(knobs),
            layout=FAKE_LAYOUT,
            eos_token_ids=(EOS,),
        )
        self.state = NodeState(
            identity,
            self.ledger,
            Emitter(setup.node_id, setup.incarnation),
            Overcommit(knobs.reserve, knobs.num_watermark_pages),
        )
        self.incoming = IncomingTransfers(
            self.state.pool,
            FAKE_LAYOUT,
            incarnation=setup.incarnation,
            lease_s=knobs.transfer_lease_s,
        )
        self.outgoing = OutgoingTransfers(FAKE_LAYOUT.page_size)
        services = Services(UNKNOWN_COSTS)
        preemption = Preemption(
            self.state,
            Swap(HostPageStore(self.pool), knobs.num_swap_pages, 1e9),
            PreemptionOptions(knobs.preemption),
            start_local=self._start_local,
        )
        self.decode = DecodeGuest(
            self.state, self.incoming, preemption, start_local=self._start_local
        )
        self.prefill = SharedPrefill(
            self.state,
            self.outgoing,
            FifoPrefill(),
            lookahead_tokens=knobs.lookahead_tokens,
            local=self.decode,
            services=services,
        )
        policy, is_steady = make_policy(knobs, setup.index)
        self.core = NodeCore(
            self.state,
            prefill=self.prefill,
            decode=self.decode,
            policy=policy,
            is_steady=is_steady,
            limits=Limits(
                knobs.max_num_seqs,
                max(knobs.max_num_batched_tokens, knobs.max_num_seqs),
                self._weights,
            ),
            services=services,
        )
        self._runner = FakeRunner(self.pool, vocab_size=knobs.vocab_size)

    def _start_local(self, resident: Resident, now: float) -> None:
        self.prefill.start_local(resident, now)

    def _hello(self) -> NodeHello:
        return NodeHello(
            node_id=self.setup.node_id,
            incarnation=self.setup.incarnation,
            control_address=self.address,
            weights=self._weights,
            model=self.state.identity.model,
            layout=FAKE_LAYOUT,
            num_pages=self.ledger.num_pages,
            max_num_seqs=self._knobs.max_num_seqs,
            max_num_batched_tokens=max(
                self._knobs.max_num_batched_tokens, self._knobs.max_num_seqs
            ),
            device="fake",
        )

    # --- the step thread --------------------------------------------------------------------

    def offer(self, event: Event) -> None:
        """Queue an event for the core."""
        self._events.append(event)
        self._wake()

    def _from_bulk(self, event: kv.BulkEvent) -> None:
        self.process.clock.note(f"{self.process.name} {type(event).__name__}")
        self.process.clock.reach(type(event).__name__)
        self.offer(FromBulk(event, isinstance(event, WRITER_EVENTS)))

    def _wake(self) -> None:
        if not self._is_round_due and not self._is_computing:
            self._is_round_due = True
            self.process.after(0.0, self._round, False)

    def _tick(self) -> None:
        if not self._is_computing:
            self._round(True)

    def _round(self, is_tick: bool) -> None:
        """One turn of the step loop: events, tick, a step."""
        self._is_round_due = False
        if self._is_computing:
            return
        core, now = self.core, self.process.now
        self._round_at = now
        actions: list[NodeAction] = []
        while self._events:
            actions += core.handle(self._events.popleft(), now)
        if actions or is_tick:
            actions += core.tick(now)
        self._post(actions)
        if is_tick:
            self._load = core.load(0.0)
            change = core.cache_changes()
            if change is not None:
                self.membership.cache_changed(change)
        step = core.plan(now)
        if step is not None:
            self._is_computing = True
            duration_s = self._knobs.step_s * self.slowness
            wedged_s = max(0.0, self.wedged_until - self.process.clock.now)
            self.process.after(duration_s + wedged_s, self._computed, step, now)
        elif core.wake_at is not None:
            self.process.after(max(0.0, core.wake_at - now), self._wake)

    def _computed(self, step: Step, began: float) -> None:
        now = self.process.now
        result = self._runner.run(step.batch)
        self._times.note(now - began)
        self._is_computing = False
        self._post(self.core.computed(step, result, now) + self.core.tick(now))
        self._load = self.core.load(0.0)
        self._round_at = now
        self._wake()

    def load(self) -> NodeLoad:
        """What heartbeats carry."""
        now = self.process.now
        return msgspec.structs.replace(
            self._load,
            step_age_s=max(0.0, now - self._round_at),
            has_work=self._is_computing or self._load.num_requests > 0 or bool(self._events),
            predicted_step_s=self._times.predicted_s,
        )

    def _post(self, actions: list[NodeAction]) -> None:
        for action in actions:
            match action:
                case Reply(peer, message):
                    self._network.answer(self.process, self.address, peer, message)
                case SendToNode(node, message):
                    self.owners.send(node, message)
                case NodeNotice() | kv.Notice():
                    self.process.clock.reach("notice")
                case CacheChanged():
                    self.membership.cache_changed(action)
                case _:
                    self.bulk.submit(action)

    # --- the I/O thread ---------------------------------------------------------------------

    def _from_peer(self, peer: bytes, message: msgspec.Struct) -> None:
        if isinstance(message, WriterHello):
            self._greet(peer, message)
        elif isinstance(message, Reserve) and peer not in self._admitted_writers:
            pass
        elif isinstance(message, FromWriter):
            self.offer(FromPeer(peer, message))
        else:
            self._gateways_heard_at[peer] = self.process.now
            if not isinstance(message, PeerBeat):
                self.offer(FromPeer(peer, message))

    def _greet(self, peer: bytes, hello: WriterHello) -> None:
        transport = self._directory.transport_of(hello.node_id, self.setup.node_id)
        reply = OwnerWelcome(
            node_id=self.setup.node_id,
            incarnation=self.setup.incarnation,
            epoch=self.membership.epoch,
            num_pages=self.ledger.num_pages,
            offers=(TransportOffer(transport=transport, address=self.process.name),),
            transport=transport,
        )
        writer = self._directory.sides[f"{hello.node_id}#{hello.incarnation}"]
        self.bulk.admit_writer(writer, transport)
        self._admitted_writers.add(peer)
        self.offer(FromPeer(peer, hello))
        self._network.answer(self.process, self.address, peer, reply)

    def _writer_hello(self) -> WriterHello:
        load = self.load()
        return WriterHello(
            node_id=self.setup.node_id,
            incarnation=self.setup.incarnation,
            epoch=self.membership.epoch,
            layout=FAKE_LAYOUT,
            model=self.state.identity.model,
            host_id="host",
            transports=("shared_memory", "zmq"),
            has_work=load.has_work,
            step_age_s=load.step_age_s,
            predicted_step_s=load.predicted_step_s,
        )

    def _open_owner(self, welcome: OwnerWelcome) -> str | None:
        offer = welcome.offers[0]
        owner = self._directory.sides[offer.address]
        self.bulk.open_peer(welcome.node_id, welcome.incarnation, owner, offer.transport)
        return None

    def _from_coordinator(self, message: msgspec.Struct) -> None:
        for outcome in self.membership.handle(message, self.process.now):
            match outcome:
                case Joined(epoch):
                    self.offer(Admitted(epoch))
                case TurnedAway(reason):
                    raise Violation(f"{self.process.name} was turned away: {reason}")
                case Forgotten():
                    self.process.clock.reach("rejoin")
                case SnapshotWanted():
                    self.process.clock.reach("cache snapshot asked for")
                    self.offer(CacheWanted())
                case RolesOrdered(weights):
                    self.process.clock.reach("roles changed")
                    self.offer(RolesChanged(weights))
                case DrainWanted():
                    self.start_drain()

    def start_drain(self) -> None:
        """Finish what is here, take nothing new, then leave."""
        if self.drain is None:
            self.process.clock.note(f"{self.process.name} drains")
            self.drain = Drain(self.process.now, 30.0)
            self.membership.hurry(self.process.now)

    def _io_tick(self) -> None:
        now = self.process.now
        message = self.membership.due(now, self.load(), draining=self.drain is not None)
        if message is not None:
            self._network.send(self._coordinator, message)
        self._note_silent_gateways(now)
        if self.drain is not None and self.drain.is_over(
            now,
            is_idle=self.core.is_idle and not self._events,
            is_known=self.membership.is_drain_known(now),
        ):
            self.process.clock.reach("drained" if self.core.is_idle else "drain timed out")
            self._network.send(self._coordinator, self.membership.goodbye())
            self.process.kill()
            self.on_left()

    def _note_silent_gateways(self, now: float) -> None:
        for peer, heard_at in list(self._gateways_heard_at.items()):
            is_dead = now - heard_at > GATEWAY_DEAD_S
            if is_dead or (now - heard_at > GATEWAY_SILENT_S and peer not in self._silent):
                self.process.clock.reach("gateway silent")
                self._silent.add(peer)
                self.offer(GatewaySilent(peer, is_dead))
            if is_dead:
                del self._gateways_heard_at[peer]
            if is_dead or now - heard_at <= GATEWAY_SILENT_S:
                self._silent.discard(peer)
