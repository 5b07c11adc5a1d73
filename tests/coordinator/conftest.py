"""A coordinator core, and messages of well-formed members to feed it with."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec
import pytest

from coordinator.actions import Note, Send
from coordinator.config import CoordinatorConfig
from coordinator.core import Coordinator
from tandem.frames import Blob
from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity
from tandem.messages.membership import (
    CacheDelta,
    ClusterStatus,
    Heartbeat,
    NodeHello,
    NodeLoad,
    PageCounts,
    RoleWeights,
    StatusQuery,
)
from tandem.messages.placement import GatewayHello, Place, RequestEnded

START = 100.0
MODEL = ModelIdentity(
    served_name="demo",
    weights_fingerprint="w1",
    tokenizer_fingerprint="t1",
    dtype="float32",
    max_model_len=4096,
    vocab_size=4000,
)
LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=8, page_size=16, dtype="float32")
ROLES = {"prefill": (1.0, 0.0), "decode": (0.0, 1.0), "mixed": (1.0, 1.0)}


def make_load(num_pages: int = 64, **counts) -> NodeLoad:
    """An idle node's load but for `counts`; `used` pages are active."""
    used = counts.pop("used", 0)
    zero = dict.fromkeys(PageCounts.__struct_fields__, 0)
    pages = PageCounts(**{**zero, "free": num_pages - used, "active": used})
    names = set(NodeLoad.__struct_fields__) - {"has_work", "predicted_step_s", "costs"}
    fields = dict.fromkeys(sorted(names), 0)
    return NodeLoad(**{**fields, "step_age_s": 0.0, "pages": pages, **counts})


@dataclass
class Cluster:
    """The core with a clock; each method is a message, and returns what is sent, by peer."""

    core: Coordinator
    config: CoordinatorConfig
    now: float = START
    epochs: dict[str, int] = field(default_factory=dict)
    sequences: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def send(self, peer: str, message: msgspec.Struct) -> list[tuple[str, msgspec.Struct]]:
        return self._collect(self.core.handle(peer.encode(), message, self.now))

    def pass_time(self, seconds: float) -> list[tuple[str, msgspec.Struct]]:
        sent = []
        for _ in range(round(seconds / 0.1)):
            self.now += 0.1
            sent += self._collect(self.core.tick(self.now))
        return sent

    def _collect(self, actions):
        self.notes += [a.text for a in actions if isinstance(a, Note)]
        return [(a.peer.decode(), a.message) for a in actions if isinstance(a, Send)]

    def node_hello(self, node_id: str, role: str, incarnation: int = 1, **changes) -> NodeHello:
        prefill, decode = ROLES[role]
        fields = {
            "node_id": node_id,
            "incarnation": incarnation,
            "control_address": f"tcp://127.0.0.1:{7400 + len(self.epochs)}",
            "weights": RoleWeights(prefill=prefill, decode=decode),
            "model": MODEL,
            "layout": LAYOUT,
            "num_pages": 64,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 512,
            "device": "cpu",
        }
        return NodeHello(**{**fields, **changes})

    def join(self, node_id: str, role: str, incarnation: int = 1, **changes):
        """Say hello as a node; returns the answer to it."""
        sent = self.send(node_id, self.node_hello(node_id, role, incarnation, **changes))
        answer = next(message for peer, message in sent if peer == node_id)
        self.epochs[node_id] = getattr(answer, "epoch", 0)
        return answer

    def heartbeat(self, node_id: str, incarnation: int = 1, counts=None, **changes) -> Heartbeat:
        """The next heartbeat of a node that is idle but for `counts`."""
        self.sequences[node_id] = self.sequences.get(node_id, 0) + 1
        fields = {
            "node_id": node_id,
            "incarnation": incarnation,
            "epoch": self.epochs[node_id],
            "sequence": self.sequences[node_id],
            "draining": False,
            "load": make_load(**(counts or {})),
        }
        return Heartbeat(**{**fields, **changes})

    def beat(
        self,
        node_id: str,
        incarnation: int = 1,
        draining: bool = False,
        cache: CacheDelta | None = None,
        **counts,
    ):
        """A heartbeat of an admitted node; returns the answer."""
        heartbeat = self.heartbeat(node_id, incarnation, counts, draining=draining, cache=cache)
        return next(m for peer, m in self.send(node_id, heartbeat) if peer == node_id)

    def status(self, **query) -> ClusterStatus:
        """What an operator is told."""
        ((_, status),) = self.send("operator", StatusQuery(**query))
        assert isinstance(status, ClusterStatus)
        return status

    def restart(self) -> "Cluster":
        """Another coordinator in the place of this one, with the same members around it."""
        elapsed_ms = round((self.now - START + 10) * 1000)
        fresh = Coordinator(self.config, incarnation=1_000_000 + elapsed_ms, now=self.now)
        return replace(self, core=fresh, notes=[])

    def gateway_hello(
        self, gateway_id: str = "gw", incarnation: int = 9, model: ModelIdentity = MODEL
    ) -> GatewayHello:
        return GatewayHello(
            gateway_id=gateway_id, incarnation=incarnation, model=model, num_live_requests=0
        )

    def greet(self, gateway_id: str = "gw", incarnation: int = 9, model: ModelIdentity = MODEL):
        """Say hello as a gateway; returns the answer."""
        sent = self.send(gateway_id, self.gateway_hello(gateway_id, incarnation, model))
        return next(message for peer, message in sent if peer == gateway_id)

    def question(self, number: int, attempt: int = 1, **changes) -> Place:
        """A gateway asks for a placement."""
        fields = {
            "gateway_id": "gw",
            "incarnation": 9,
            "request_id": number.to_bytes(16, "big"),
            "attempt": attempt,
            "num_prompt_tokens": 100,
            "num_output_tokens": 0,
            "max_output_tokens": 20,
            "sla_class": None,
            "ttft_ms": None,
            "tpot_ms": None,
            "tenant": "default",
            "priority": 0,
            "prefix_hashes": Blob(),
        }
        return Place(**{**fields, **changes})

    def place(self, number: int, attempt: int = 1, **changes):
        """Ask for a placement; returns the answers: its own, and of those that waited."""
        peer = changes.get("gateway_id", "gw")
        return [m for _, m in self.send(peer, self.question(number, attempt, **changes))]

    def report(self, number: int, **changes) -> RequestEnded:
        """The report of a request's end."""
        fields = {
            "gateway_id": "gw",
            "incarnation": 9,
            "request_id": number.to_bytes(16, "big"),
            "attempt": 1,
            "reason": "stop",
            "sla_class": "standard",
            "sla_attained": True,
            "ttft_ms": 10.0,
            "tpot_ms": 5.0,
            "num_output_tokens": 3,
        }
        return RequestEnded(**{**fields, **changes})

    def end(self, number: int, **changes):
        """Report a request's end; returns the answer."""
        ((_, answer),) = self.send("gw", self.report(number, **changes))
        return answer


def make_core(**settings) -> Cluster:
    """A coordinator with these settings, ten seconds after its start."""
    config = CoordinatorConfig(**settings)
    return Cluster(Coordinator(config, incarnation=1_000_000, now=START - 10), config)


@pytest.fixture
def make_cluster() -> Callable[..., Cluster]:
    return make_core


@pytest.fixture
def cluster(make_cluster) -> Cluster:
    """One gateway, nobody else."""
    made = make_cluster()
    made.greet()
    return made
