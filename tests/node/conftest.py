"""Two whole nodes without sockets, threads or clock, and a network that loses and repeats.

The KV is real bytes copied between two pools, so tokens are right only if every page is.
"""

import random
from collections.abc import Iterator
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from decode_node.guest import DecodeGuest
from kv_transfer import actions as kv
from kv_transfer.incoming import IncomingTransfers
from kv_transfer.outgoing import OutgoingTransfers
from node.actions import Reply, SendToNode
from node.core import Admitted, FromBulk, FromNode, FromPeer, Limits, NodeCore
from node.emitter import Emitter
from node.fake_runner import FAKE_LAYOUT, FakeRunner, fake_token
from node.ledger import PageLedger
from node.state import NodeIdentity, NodeState
from prefill_node.guest import PrefillGuest
from scheduling.batch_policies import make_batch_policy
from scheduling.prefill_policies import FifoPrefill
from tandem.frames import TokenIds
from tandem.messages.common import ModelIdentity, NodeRef, PrefillReport, SlaTargets
from tandem.messages.handoff import ChunkSum
from tandem.messages.membership import RoleWeights
from tandem.messages.serving import (
    Cancel,
    CommandAck,
    CommandRefused,
    Decode,
    Emission,
    EmissionAck,
    Prefill,
    RequestSpec,
    TokensTaken,
)
from tandem.sampling import SamplingParams

VOCAB = 1000
GATEWAY = b"gateway/g/1"
TARGETS = SlaTargets(sla_class="standard", ttft_ms=1, tpot_ms=1)


class Node:
    """One node and the memory it owns."""

    def __init__(self, name: str, num_pages: int, *, policy: str = "fifo", rows: int = 8) -> None:
        self.name = name
        self.identity = f"node/{name}/1".encode()
        self.pool = np.zeros((num_pages, FAKE_LAYOUT.page_bytes), np.uint8)
        self.ledger = PageLedger(num_pages)
        model = ModelIdentity(
            served_name="fake",
            weights_fingerprint="w",
            tokenizer_fingerprint="t",
            dtype="float32",
            max_model_len=4096,
            vocab_size=VOCAB,
        )
        identity = NodeIdentity(
            node_id=name, incarnation=1, model=model, layout=FAKE_LAYOUT, eos_token_ids=()
        )
        self.state = NodeState(identity, self.ledger, Emitter(name, 1))
        self.decode = DecodeGuest(
            self.state,
            IncomingTransfers(self.ledger, FAKE_LAYOUT, incarnation=1),
            start_local=lambda resident, now: self.prefill.start_local(resident, now),
        )
        self.prefill = PrefillGuest(
            self.state,
            OutgoingTransfers(FAKE_LAYOUT.page_size),
            FifoPrefill(),
            lookahead_tokens=200,
            local=self.decode,
        )
        self.core = NodeCore(
            self.state,
            prefill=self.prefill,
            decode=self.decode,
            policy=make_batch_policy(policy),
            limits=Limits(rows, 40, RoleWeights(prefill=1, decode=1)),
        )
        self.core.handle(Admitted(1), 0.0)
        self.runner = FakeRunner(self.pool, vocab_size=VOCAB)

    @property
    def ref(self) -> NodeRef:
        return NodeRef(node_id=self.name, incarnation=1, epoch=1, control_address="tcp://x")


class World:
    """A prefill node, a decode node, a gateway, and a network that may lose and repeat."""

    def __init__(
        self,
        *,
        loss: float = 0.0,
        prefill_pages: int = 64,
        decode_pages: int = 64,
        policy: str = "fifo",
    ) -> None:
        self.rng = random.Random(11)
        self.loss = loss
        self.now = 0.0
        self.p = Node("p", prefill_pages)
        self.d = Node("d", decode_pages, policy=policy)
        self.tokens: dict[bytes, dict[int, int]] = {}
        self.endings: dict[bytes, str] = {}
        self.reports: list[PrefillReport] = []
        self.refusals: list[CommandRefused] = []
        self.unanswered: dict[tuple[str, str, bytes], msgspec.Struct] = {}
        self.num_copied = 0
        self.verify_error: str | None = None
        self.mail: list[tuple[str, object]] = []  # (to, event); bulk answers are never lost

    def submit(
        self,
        n: int,
        num_prompt: int,
        max_tokens: int,
        *,
        local: bool = False,
        same_prompt_as: int | None = None,
    ) -> bytes:
        request_id = n.to_bytes(16, "big")
        spec = RequestSpec(
            request_id=request_id,
            attempt=1,
            prompt_ids=TokenIds(prompt(same_prompt_as or n, num_prompt)),
            output_ids=TokenIds(),
            params=SamplingParams(max_tokens=max_tokens, temperature=0.0),
            seed=1,
            choice=0,
            tenant="default",
            priority=0,
            targets=TARGETS,
            deadline_s=None,
            sequence=n,
        )
        if not local:
            self.command("p", Prefill(spec=spec, decode=self.d.ref), "prefill", request_id)
        self.command(
            "d", Decode(spec=spec, prefill=None if local else self.p.ref), "decode", request_id
        )
        return request_id

    def cancel(self, request_id: bytes) -> None:
        for name in ("p", "d"):
            self.unanswered = {
                k: v for k, v in self.unanswered.items() if k[0] != name or k[2] != request_id
            }
            self.command(name, Cancel(request_id=request_id, attempt=1), "cancel", request_id)

    def command(self, to: str, message: msgspec.Struct, kind: str, request_id: bytes) -> None:
        self.unanswered[(to, kind, request_id)] = message

    def node(self, name: str) -> Node:
        return self.p if name == "p" else self.d

    def post(self, to: str, event: object, *, lossy: bool = True) -> None:
        for _ in range(1 + (lossy and self.rng.random() < self.loss)):
            if not lossy or self.rng.random() >= self.loss:
                self.mail.append((to, event))

    def turn(self) -> None:
        """One exchange of mail, one step on each node."""
        self.now += 0.05
        for (to, _, _), message in list(self.unanswered.items()):
            self.post(to, FromPeer(GATEWAY, message))
        mail, self.mail = self.mail, []
        self.rng.shuffle(mail)
        for to, event in mail:
            node = self.node(to)
            self.execute(node, node.core.handle(event, self.now))  # type: ignore[arg-type]
        for node in (self.p, self.d):
            self.execute(node, node.core.tick(self.now))
            step = node.core.plan(self.now)
            if step is not None:
                result = node.runner.run(step.batch)
                self.execute(node, node.core.computed(step, result, self.now))
            node.ledger.check()

    def execute(self, node: Node, actions: list[object]) -> None:
        for action in actions:
            match action:
                case Reply(peer, message) if peer == GATEWAY:
                    self.at_gateway(node.name, message)
                case Reply(_, message):
                    self.post("p", FromNode(node.name, message))
                case SendToNode(_, message):
                    self.post("d", FromPeer(node.identity, message))
                case kv.WritePages():
                    self.copy(action)
                case kv.VerifyPages(key, grant_id, _, _):
                    event: object = kv.PagesVerified(key, grant_id, self.verify_error)
                    self.post("d", FromBulk(event, False), lossy=False)
                case kv.CloseGrant(grant_id):
                    event = kv.GrantClosed(grant_id, False)
                    self.post("d", FromBulk(event, False), lossy=False)

    def copy(self, job: kv.WritePages) -> None:
        for source, target in zip(job.source_pages, job.target_pages, strict=True):
            self.d.pool[target] = self.p.pool[source]
        self.num_copied += len(job.source_pages)
        chunk = ChunkSum(first=job.first, num_pages=len(job.source_pages), checksum=bytes(8))
        self.post("p", FromBulk(kv.PagesWritten(job.key, chunk), True), lossy=False)

    def at_gateway(self, name: str, message: msgspec.Struct) -> None:
        if self.rng.random() < self.loss:
            return
        if isinstance(message, CommandAck):
            self.unanswered.pop((name, message.command, message.request_id), None)
        elif isinstance(message, CommandRefused):
            self.unanswered.pop((name, message.command, message.request_id), None)
            self.refusals.append(message)
        elif isinstance(message, Emission):
            ack = self.take(message)
            self.post(name, FromPeer(GATEWAY, ack))

    def take(self, emission: Emission) -> EmissionAck:
        taken = []
        for delta in emission.deltas:
            known = self.tokens.setdefault(delta.request_id, {})
            for index, token_id in enumerate(delta.ids, delta.start):
                assert known.setdefault(index, token_id) == token_id, "a token changed"
            end = next(i for i in range(len(known) + 1) if i not in known)
            taken.append(
                TokensTaken(request_id=delta.request_id, attempt=delta.attempt, next_index=end)
            )
        self.reports += [report for _, _, report in emission.prefills]
        for ending in emission.endings:
            known = self.tokens.get(ending.request_id, {})
            if all(i in known for i in range(ending.end_index)):
                self.endings.setdefault(ending.request_id, ending.reason)
        ended = tuple((r, 1) for r in self.endings)
        return EmissionAck(taken=tuple(taken), ended=ended)

    def run(self, num_turns: int = 4000) -> None:
        """Until nothing is left anywhere."""
        for _ in range(num_turns):
            self.turn()
            if not self.mail and not self.unanswered and self.is_idle():
                return
        raise AssertionError(f"not idle: {self.p.core.load(0)} {self.d.core.load(0)}")

    def is_idle(self) -> bool:
        return self.p.core.is_idle and self.d.core.is_idle

    def assert_no_leak(self) -> None:
        for node in (self.p, self.d):
            counts = node.ledger.counts()
            assert counts.free + counts.cached == node.ledger.num_pages, counts
            assert node.ledger.num_promised == 0


def prompt(n: int, num_tokens: int) -> list[int]:
    return [(n * 7919 + i * 31) % VOCAB for i in range(num_tokens)]


def expected(n: int, num_prompt: int, max_tokens: int) -> Iterator[int]:
    history = prompt(n, num_prompt)
    for _ in range(max_tokens):
        history.append(fake_token(np.array(history, np.int32), VOCAB))
        yield history[-1]


def stream(world: World, request_id: bytes) -> list[int]:
    tokens = world.tokens[request_id]
    return [tokens[i] for i in range(len(tokens))]


@pytest.fixture
def pair() -> SimpleNamespace:
    """The harness: `World`, `prompt`, `expected`, `stream`."""
    return SimpleNamespace(World=World, prompt=prompt, expected=expected, stream=stream)
