"""A world of fakes around the pure ledger: a coordinator, nodes whose token i is f(i), a client."""

from dataclasses import dataclass, field

import msgspec

from gateway.actions import CloseNode, NewRequest, ToClient, ToCoordinator, ToNode
from gateway.ledger import Ledger
from tandem.frames import TokenIds
from tandem.messages.client import Accepted, Done, Output
from tandem.messages.common import (
    DecodeReport,
    NodeRef,
    PrefillReport,
    SlaTargets,
    TokenLogprobs,
)
from tandem.messages.placement import (
    GatewayWelcome,
    NodeDown,
    Place,
    Placed,
    PlaceRefused,
    RequestEnded,
    RequestEndedAck,
)
from tandem.messages.serving import (
    AskAttempt,
    AttemptStatus,
    Cancel,
    CommandAck,
    Decode,
    Emission,
    EmissionAck,
    Ending,
    Prefill,
    RequestSpec,
    TokenDelta,
)
from tandem.sampling import SamplingParams

EOS = 3
CLIENT = b"client"


def token_at(index: int) -> int:
    """Token `index` of every answer; never the end-of-text token."""
    return 10 + (index * 7) % 23


def letters(ids) -> str:
    """Text of token ids: one letter each."""
    return "".join(chr(ord("a") + i % 26) for i in ids)


def node_ref(node_id: str, epoch: int, incarnation: int = 1) -> NodeRef:
    return NodeRef(
        node_id=node_id,
        incarnation=incarnation,
        epoch=epoch,
        control_address=f"tcp://127.0.0.1:{9000 + epoch % 1000}",
    )


def new_request(number: int = 1, **changes) -> NewRequest:
    params = {"max_tokens": 6, "temperature": 0.0, **changes.pop("params", {})}
    fields = {
        "request_id": number.to_bytes(16, "big"),
        "client": CLIENT,
        "label": f"label {number}",
        "prompt_ids": TokenIds(range(5)),
        "params": SamplingParams(**params),
        "seed": 7,
        "sla_class": None,
        "ttft_ms": None,
        "tpot_ms": None,
        "priority": 0,
        "deadline_s": None,
        "received": 0.0,
        "received_unix_s": 1e9,
    }
    return NewRequest(**{**fields, **changes})


@dataclass
class FakeNode:
    """Answers commands, makes tokens, keeps them until acknowledged. A zombie makes garbage."""

    ref: NodeRef
    is_zombie: bool = False
    specs: dict[tuple[bytes, int], RequestSpec] = field(default_factory=dict)
    roles: dict[tuple[bytes, int], set[str]] = field(default_factory=dict)
    made: dict[tuple[bytes, int], int] = field(default_factory=dict)
    kept_from: dict[tuple[bytes, int], int] = field(default_factory=dict)
    closed: dict[bytes, int] = field(default_factory=dict)
    ended: set[tuple[bytes, int]] = field(default_factory=set)

    def command(self, message: msgspec.Struct) -> list[msgspec.Struct]:
        match message:
            case Prefill() | Decode():
                spec, kind = message.spec, type(message).__name__.lower()
                key = (spec.request_id, spec.attempt)
                for earlier in [k for k in self.specs if k[0] == key[0] and k[1] < key[1]]:
                    self._forget(earlier)
                self.closed[key[0]] = max(key[1] - 1, self.closed.get(key[0], 0))
                if self.closed.get(key[0], 0) < key[1]:
                    if key not in self.specs:
                        self.made[key] = self.kept_from[key] = len(spec.output_ids)
                    self.specs[key] = spec
                    self.roles.setdefault(key, set()).add(kind)
                return [CommandAck(command=kind, request_id=key[0], attempt=key[1])]
            case Cancel(request_id=request_id, attempt=attempt):
                self.closed[request_id] = max(attempt, self.closed.get(request_id, 0))
                for key in [k for k in self.specs if k[0] == request_id and k[1] <= attempt]:
                    self._forget(key)
                return [CommandAck(command="cancel", request_id=request_id, attempt=attempt)]
            case AskAttempt(request_id=request_id, attempt=attempt):
                # Tokens of its own show that it has the KV.
                key = (request_id, attempt)
                has_kv = key in self.specs and self.made[key] > len(self.specs[key].output_ids)
                ids = {"request_id": request_id, "attempt": attempt}
                return [AttemptStatus(**ids, has_kv=has_kv, is_here=key in self.specs)]
            case EmissionAck():
                for taken in message.taken:
                    if (key := (taken.request_id, taken.attempt)) in self.specs:
                        self._take(key, taken.next_index)
                for key in message.ended:
                    self._forget(key)
        return []

    def _take(self, key, next_index: int) -> None:
        self.kept_from[key] = max(self.kept_from[key], min(next_index, self.made[key]))
        if self.roles[key] == {"prefill"} and self.kept_from[key] == self._limit(key):
            self._forget(key)  # token 0 is all that it had to say

    def _forget(self, key) -> None:
        for table in (self.specs, self.roles, self.made, self.kept_from):
            table.pop(key, None)

    def step(self, num_tokens: int = 1) -> None:
        """Make tokens for every request that has its command."""
        for key, spec in self.specs.items():
            self.made[key] = min(self.made[key] + num_tokens, self._limit(key))
            if self.made[key] == spec.params.max_tokens:
                self.ended.add(key)

    def _limit(self, key) -> int:
        spec = self.specs[key]
        return spec.params.max_tokens if "decode" in self.roles[key] else len(spec.output_ids) + 1  # type: ignore[return-value]

    def message(self, *parts: TokenDelta | Ending, prefills: tuple = ()) -> Emission:
        """These deltas and endings in one message."""
        return Emission(
            node_id=self.ref.node_id,
            incarnation=self.ref.incarnation,
            epoch=self.ref.epoch,
            deltas=tuple(p for p in parts if isinstance(p, TokenDelta)),
            endings=tuple(p for p in parts if isinstance(p, Ending)),
            prefills=prefills,
        )

    def emit(self) -> list[Emission]:
        """Everything not acknowledged, one message per request."""
        return [self._emission(key) for key in list(self.specs)]

    def _emission(self, key) -> Emission:
        spec, start, end = self.specs[key], self.kept_from[key], self.made[key]
        garbage = 100 if self.is_zombie else 0
        ids = tuple(token_at(i) + garbage for i in range(start, end))
        scored = () if spec.params.logprobs is None else range(start, end)
        logprobs = tuple(TokenLogprobs(logprob=-float(i)) for i in scored)
        delta = TokenDelta(
            request_id=key[0], attempt=key[1], start=start, ids=ids, logprobs=logprobs
        )
        report = PrefillReport(
            node_id=self.ref.node_id,
            started_after_s=0.01,
            first_token_after_s=0.02,
            num_cached_tokens=2,
        )
        parts = [delta] if ids else []
        ends = [self._ending(key, end, report)] if key in self.ended else []
        prefills = ((*key, report),) if "prefill" in self.roles[key] else ()
        return self.message(*parts, *ends, prefills=prefills)

    def _ending(self, key, end: int, report: PrefillReport) -> Ending:
        decode = DecodeReport(
            node_id=self.ref.node_id,
            transfer_end_after_s=0.03,
            started_after_s=0.04,
            ended_after_s=0.05,
            transfer_bytes=1000,
        )
        return Ending(
            request_id=key[0],
            attempt=key[1],
            end_index=end,
            reason="length",
            prefill=report if "prefill" in self.roles[key] else None,
            decode=decode,
        )


@dataclass
class World:
    """The ledger and its surroundings; nothing is delivered but by the methods."""

    ledger: Ledger
    now: float = 0.0
    nodes: dict[str, FakeNode] = field(default_factory=dict)
    to_coordinator: list[msgspec.Struct] = field(default_factory=list)
    to_nodes: list[tuple[NodeRef, msgspec.Struct]] = field(default_factory=list)
    to_client: list[msgspec.Struct] = field(default_factory=list)
    closed: list[CloseNode] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    ends: list[RequestEnded] = field(default_factory=list)
    num_epochs: int = 100

    def add_node(self, node_id: str) -> FakeNode:
        """A node, or its next incarnation."""
        self.num_epochs += 1
        ref = node_ref(node_id, self.num_epochs, incarnation=self.num_epochs)
        self.nodes[node_id] = FakeNode(ref)
        return self.nodes[node_id]

    def do(self, actions) -> None:
        for action in actions:
            match action:
                case ToClient(_, message):
                    self.to_client.append(message)
                case ToNode(node, message):
                    self.to_nodes.append((node, message))
                case ToCoordinator(message):
                    self.to_coordinator.append(message)
                case CloseNode():
                    self.closed.append(action)

    def submit(self, number: int = 1, **changes) -> None:
        self.do(self.ledger.submit(new_request(number, received=self.now, **changes), self.now))

    def tick(self, seconds: float = 0.1) -> None:
        self.now += seconds
        self.do(self.ledger.tick(self.now))

    def hear(self, message: msgspec.Struct) -> None:
        """The coordinator says something."""
        self.do(self.ledger.from_coordinator(message, self.now))

    def say(self, node: FakeNode, message: msgspec.Struct) -> None:
        """A node says something."""
        self.do(self.ledger.from_node(node.ref, message, self.now))

    def placed(self, place: Place, prefill: str | None = "p0", decode: str = "d0") -> Placed:
        return Placed(
            request_id=place.request_id,
            attempt=place.attempt,
            prefill=None if prefill is None else self.nodes[prefill].ref,
            decode=self.nodes[decode].ref,
            targets=SlaTargets(sla_class="standard", ttft_ms=2000, tpot_ms=200),
            sequence=1,
        )

    def coordinate(self, prefill: str | None = "p0", decode: str = "d0") -> None:
        """Answer all that the coordinator was asked."""
        asked, self.to_coordinator = self.to_coordinator, []
        for message in asked:
            if isinstance(message, Place):
                self.places.append(message)
                leaving = message.move_from
                if leaving is None:
                    self.hear(self.placed(message, prefill, decode))
                elif leaving in self.nodes and leaving != decode:
                    self.hear(self.placed(message, leaving, decode))
                else:
                    self.refuse(message, "no_decode_node")
            else:
                assert isinstance(message, RequestEnded)
                self.ends.append(message)
                self.hear(RequestEndedAck(request_id=message.request_id))

    def deliver(self) -> None:
        """Bring the ledger's messages to the nodes that live, and their answers back."""
        sent, self.to_nodes = self.to_nodes, []
        for ref, message in sent:
            node = self.nodes.get(ref.node_id)
            if node is None or node.ref.incarnation != ref.incarnation:
                continue
            for answer in node.command(message):
                self.say(node, answer)

    def run(self, num_rounds: int = 30) -> None:
        """Let everything work."""
        for _ in range(num_rounds):
            self.coordinate()
            self.deliver()
            for node in self.nodes.values():
                node.step()
                for emission in node.emit():
                    self.say(node, emission)
            self.deliver()
            self.tick()

    def question(self) -> Place:
        """What the coordinator has not answered yet."""
        (place,) = {m for m in self.to_coordinator if isinstance(m, Place)}
        return place

    def refuse(self, place: Place, code: str, retry_after_s: float | None = None) -> None:
        """The coordinator has no nodes for this."""
        refused = PlaceRefused(
            request_id=place.request_id,
            attempt=place.attempt,
            code=code,
            message="why",
            retry_after_s=retry_after_s,
        )
        self.hear(refused)

    def emit(self, node: FakeNode, *parts: TokenDelta | Ending) -> None:
        """A node says these deltas and endings in one message."""
        self.say(node, node.message(*parts))

    @staticmethod
    def tokens(attempt: int, start: int, ids, number: int = 1) -> TokenDelta:
        """Tokens of an attempt at request `number`."""
        key = {"request_id": number.to_bytes(16, "big"), "attempt": attempt}
        return TokenDelta(**key, start=start, ids=tuple(ids))

    @staticmethod
    def ending(attempt: int, end_index: int, reason: str, number: int = 1, **changes) -> Ending:
        """The end of an attempt at request `number`."""
        key = {"request_id": number.to_bytes(16, "big"), "attempt": attempt}
        return Ending(**key, end_index=end_index, reason=reason, **changes)

    def last_ack(self) -> EmissionAck:
        """What a node was last told that it may forget."""
        return next(m for _, m in reversed(self.to_nodes) if isinstance(m, EmissionAck))

    def welcome(self, *draining: str, **changes) -> None:
        """The coordinator's word of every second."""
        fields = {
            "coordinator_incarnation": 1,
            "sla_classes": (),
            "default_class": "standard",
            "num_prefill_nodes": 1,
            "num_decode_nodes": 1,
            "draining_nodes": draining,
        }
        self.hear(GatewayWelcome(**{**fields, **changes}))

    def commands(self, attempt: int, number: int = 1) -> dict[str, tuple[str, msgspec.Struct]]:
        """What nodes are told to do for an attempt, by the kind of command."""
        key = (number.to_bytes(16, "big"), attempt)
        found = [(r, m) for r, m in self.to_nodes if isinstance(m, Prefill | Decode)]
        of_attempt = [(r, m) for r, m in found if (m.spec.request_id, m.spec.attempt) == key]
        return {type(m).__name__: (r.node_id, m) for r, m in of_attempt}

    def sent(self, kind: type) -> list[tuple[str, msgspec.Struct]]:
        """Messages of a kind on their way to nodes, and to which."""
        return [(ref.node_id, m) for ref, m in self.to_nodes if isinstance(m, kind)]

    def lose(self, node_id: str) -> FakeNode:
        """A node dies; the coordinator says so."""
        node = self.nodes.pop(node_id)
        self.hear(NodeDown(node_id=node_id, epoch=node.ref.epoch, reason="no heartbeat"))
        return node

    def outputs(self, number: int = 1) -> list[Output]:
        return [
            m
            for m in self.to_client
            if isinstance(m, Output) and m.request_id == number.to_bytes(16, "big")
        ]

    def ids(self, number: int = 1, start: int = 0) -> list[int]:
        """Token ids from `start` on that the client got, their indices consecutive."""
        ids: list[int] = []
        for output in self.outputs(number):
            assert output.index == start + len(ids), "a token is missing, doubled or out of order"
            ids += output.token_ids
        return ids

    def text(self, number: int = 1) -> str:
        return "".join(output.text for output in self.outputs(number))

    def done(self, number: int = 1) -> Done:
        """The one terminal message."""
        request_id = number.to_bytes(16, "big")
        of_request = [m for m in self.to_client if getattr(m, "request_id", None) == request_id]
        found = [m for m in of_request if isinstance(m, Done)]
        assert len(found) == 1, f"{len(found)} terminal messages"
        assert of_request[-1] is found[0], "something came after the end"
        return found[0]

    def accepted(self) -> list[Accepted]:
        return [m for m in self.to_client if isinstance(m, Accepted)]

    def cancels(self) -> set[tuple[str, int]]:
        """Nodes and attempts for which a cancel is on its way."""
        return {(ref.node_id, m.attempt) for ref, m in self.to_nodes if isinstance(m, Cancel)}
