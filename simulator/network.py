"""Messages between processes: lost, repeated, delayed, reordered, cut off; all drawn from a seed.

A dialler's `Link` reaches whoever listens at its address at that moment; answers come back to the
link that dialled under an identity, while it is open. What is on its way to a dead process is lost.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from simulator.clock import Clock
from simulator.knobs import Knobs
from simulator.process import Process
from tandem.codec import Decoder, encode
from tandem.messages.handoff import CommitAck, Grant, OwnerWelcome, WriterHello
from tandem.messages.membership import Heartbeat, HeartbeatAck, NodeHello, NodeWelcome
from tandem.messages.placement import GatewayHello, GatewayWelcome, Place
from tandem.messages.serving import Adopted, AttemptStatus, Decode, PeerBeat

PERIODIC = (
    NodeHello,
    NodeWelcome,
    Heartbeat,
    HeartbeatAck,
    GatewayHello,
    GatewayWelcome,
    PeerBeat,
    WriterHello,
    OwnerWelcome,
)
Receive = Callable[[msgspec.Struct], None]
Listen = Callable[[bytes, msgspec.Struct], None]


@dataclass(slots=True, eq=False)
class Link:
    """A dialled connection. Closed links neither send nor receive."""

    owner: Process
    identity: bytes
    address: str
    receive: Receive
    is_reliable: bool = False
    is_open: bool = True


@dataclass(slots=True)
class _Listener:
    process: Process
    listen: Listen
    links: dict[bytes, Link] = field(default_factory=dict)


class Network:
    """See the module. Sites are process names without their incarnation, so faults outlive them."""

    def __init__(self, clock: Clock, knobs: Knobs, rng: random.Random) -> None:
        self._clock = clock
        self._knobs = knobs
        self._rng = rng
        self._listeners: dict[str, _Listener] = {}
        self._cut: set[tuple[str, str]] = set()  # (from, to): nothing passes
        self._clogged: set[tuple[str, str]] = set()  # what is sent waits until the clog is gone
        self._waiting: list[tuple[tuple[str, str], Callable[[], None]]] = []
        self._slow: dict[str, float] = {}
        self._decoders: dict[type[msgspec.Struct], Decoder[msgspec.Struct]] = {}
        self._last_at: dict[tuple[str, str], float] = {}
        self.last_demand = (0.0, "")  # when anything but a beat was last handed over, and what
        self.is_kind = False  # after the faults: nothing is lost or repeated any more

    # --- endpoints --------------------------------------------------------------------------

    def listen(self, process: Process, address: str, listen: Listen) -> None:
        """Serve an address, in place of whoever did before."""
        self._listeners[address] = _Listener(process, listen)

    def dial(
        self,
        owner: Process,
        identity: bytes,
        address: str,
        receive: Receive,
        *,
        is_reliable: bool = False,
    ) -> Link:
        """A link to an address, whether or not anybody listens there yet."""
        return Link(owner, identity, address, receive, is_reliable)

    def send(self, link: Link, message: msgspec.Struct) -> None:
        """From the dialler to the listener."""
        listener = self._listeners.get(link.address)
        if not link.is_open or listener is None:
            return
        message = self._encoded(message)

        def arrive() -> None:
            current = self._listeners[link.address]
            if link.is_open and current.process.is_alive:
                current.links[link.identity] = link
                self._hand(link.owner, current.process, message)
                current.process.run(current.listen, link.identity, message)

        self._transmit(link.owner, listener.process, link.is_reliable, arrive)

    def answer(
        self, process: Process, address: str, identity: bytes, message: msgspec.Struct
    ) -> bool:
        """From a listener to whoever dialled it under an identity; False where it hung up."""
        listener = self._listeners[address]
        link = listener.links.get(identity)
        if listener.process is not process or link is None:
            return False
        if not link.is_open or not link.owner.is_alive:
            return False
        message = self._encoded(message)

        def receive() -> None:
            if link.is_open:
                link.receive(message)

        def arrive() -> None:
            if link.owner.is_alive and link.is_open:
                self._hand(process, link.owner, message)
                link.owner.run(receive)

        self._transmit(process, link.owner, link.is_reliable, arrive)
        return True

    def _encoded(self, message: msgspec.Struct) -> msgspec.Struct:
        """What the receiver reads, on seeds that pay for it."""
        if not self._knobs.is_encoded:
            return message
        kind = type(message)
        if kind not in self._decoders:
            self._decoders[kind] = Decoder(kind)
        return self._decoders[kind].decode(encode(message))

    def _hand(self, sender: Process, receiver: Process, message: msgspec.Struct) -> None:
        self._clock.note(f"{sender.name} > {receiver.name} {describe(message)}")
        if not isinstance(message, PERIODIC):
            self.last_demand = (self._clock.now, describe(message))
            self._clock.reach(type(message).__name__)
            for label in labels_of(message):
                self._clock.reach(label)

    # --- the wire ---------------------------------------------------------------------------

    def _transmit(
        self, sender: Process, receiver: Process, is_reliable: bool, arrive: Callable[[], None]
    ) -> None:
        path = (site(sender), site(receiver))
        if path in self._cut and not is_reliable:
            return
        if path in self._clogged or path in self._cut:
            self._waiting.append((path, arrive))
            return
        num_copies = 1
        if not self.is_kind and not is_reliable:
            if self._rng.random() < self._knobs.loss:
                return
            num_copies += self._rng.random() < self._knobs.duplication
        for _ in range(num_copies):
            delay_s = self._rng.expovariate(1 / self._knobs.delay_s)
            delay_s += self._slow.get(path[0], 0.0) + self._slow.get(path[1], 0.0)
            if is_reliable or self._knobs.is_ordered:
                at = max(self._clock.now + delay_s, self._last_at.get(path, 0.0))
                self._last_at[path] = at
                delay_s = at - self._clock.now
            self._clock.after(delay_s, arrive)

    # --- faults -----------------------------------------------------------------------------

    def cut(self, one: str, other: str, *, both_ways: bool) -> None:
        """Partition two sites."""
        self._clock.note(f"cut {one} > {other} {'both ways' if both_ways else 'one way'}")
        self._cut.add((one, other))
        if both_ways:
            self._cut.add((other, one))

    def clog(self, one: str, other: str) -> None:
        """Hold back all that goes from one site to the other."""
        self._clock.note(f"clog {one} > {other}")
        self._clogged.add((one, other))

    def slow(self, name: str, delay_s: float) -> None:
        """Add a delay to all that comes from and goes to a site."""
        self._clock.note(f"slow link of {name}")
        self._slow[name] = delay_s

    def heal(self) -> None:
        """End all cuts, clogs and delays; what was held back comes in random order."""
        self._clock.note("heal the network")
        self._cut.clear()
        self._clogged.clear()
        self._slow.clear()
        waiting, self._waiting = self._waiting, []
        for _, arrive in waiting:
            self._clock.after(self._rng.random() * 0.01, arrive)

    def is_cut(self, sender: Process, receiver: Process) -> bool:
        """Whether nothing passes at the moment (for bulk transfers over the wire)."""
        path = (site(sender), site(receiver))
        return path in self._cut or path in self._clogged


def site(process: Process) -> str:
    """The name that outlives an incarnation."""
    return process.name.partition("#")[0]


def labels_of(message: msgspec.Struct) -> Iterator[str]:
    """Branches that a message shows to have been reached."""
    match message:
        case Decode(spec=spec) if spec.attempt > 1 and len(spec.output_ids):
            yield "fail-over mid-decode"
        case Grant(num_cached_tokens=num_cached) if num_cached:
            yield "suffix hit"
        case Place(move_from=str()):
            yield "move asked for"
        case AttemptStatus(has_kv=True):
            yield "doubt resolved: KV is there"
        case Adopted(is_wanted=False):
            yield "adoption denied"
        case CommitAck(error=str()):
            yield "commit refused"


def describe(message: msgspec.Struct) -> str:
    """A short line for the trace."""
    request_id = getattr(message, "request_id", None)
    spec = getattr(message, "spec", None)
    if spec is not None:
        request_id, attempt = spec.request_id, spec.attempt
    else:
        attempt = getattr(message, "attempt", "")
    name = type(message).__name__
    if request_id is not None:
        index = getattr(message, "next_index", getattr(message, "index", ""))
        end = " done" if getattr(message, "is_done", False) else ""
        return f"{name} {request_id.hex()[-4:]}/{attempt}{index}{end}"
    deltas = getattr(message, "deltas", None)
    if deltas is not None:
        tokens = " ".join(f"{d.request_id.hex()[-4:]}/{d.attempt}@{d.start}{d.ids}" for d in deltas)
        return f"{name} {tokens} ends {len(message.endings)}"  # type: ignore[attr-defined]
    return name
