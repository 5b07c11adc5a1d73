"""Two whole nodes without sockets, threads or clock, and a network that loses and repeats.

The KV is real bytes copied between two pools, so tokens are right only if every page is. Copies
take a while and are audited: nobody else may have the pages that they touch.
"""

import random
import zlib
from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from kv_transfer import actions as kv
from node.actions import NodeNotice, Reply, SendToNode
from node.core import FromBulk, FromNode, FromPeer
from node.fake_runner import fake_token
from node.ledger import PageState
from tandem.frames import Blob, TokenIds
from tandem.messages.common import DecodeReport, LengthPrediction, PrefillReport, SlaTargets
from tandem.messages.handoff import ChunkSum, Reserve
from tandem.messages.serving import (
    Adopt,
    Adopted,
    AttemptStatus,
    Cancel,
    CommandAck,
    CommandRefused,
    Decode,
    Emission,
    EmissionAck,
    Ending,
    Prefill,
    RequestSpec,
    TokensTaken,
)
from tandem.sampling import SamplingParams
from tests.node.whole_node import VOCAB, Node

GATEWAY = b"gateway/g/1"
TARGETS = SlaTargets(sla_class="standard", ttft_ms=1, tpot_ms=1)


def hash_pages(pool: np.ndarray, pages: tuple[int, ...]) -> bytes:
    return zlib.crc32(pool[list(pages)].tobytes()).to_bytes(8, "big")


def prompt(n: int, num_tokens: int) -> list[int]:
    return [(n * 7919 + i * 31) % VOCAB for i in range(num_tokens)]


def expected(n: int, num_prompt: int, max_tokens: int) -> Iterator[int]:
    return tokens_after(prompt(n, num_prompt), max_tokens)


def tokens_after(prompt_ids: list[int], max_tokens: int) -> Iterator[int]:
    history = list(prompt_ids)
    for _ in range(max_tokens):
        history.append(fake_token(np.array(history, np.int32), VOCAB))
        yield history[-1]


class World:
    """A prefill node, a decode node, a gateway, and a network that may lose and repeat."""

    def __init__(
        self,
        *,
        loss: float = 0.0,
        prefill_pages: int = 64,
        decode_pages: int = 64,
        policy: str = "fifo",
        seed: int = 11,
        copy_chance: float = 1.0,
        is_mapped: bool = True,
        make_node: Callable[..., Node] = Node,
    ) -> None:
        self.rng = random.Random(seed)
        self.copy_chance = copy_chance  # that a copy ends in a turn
        self.is_mapped = is_mapped
        self.loss = loss
        self.now = 0.0
        self.p = make_node("p", prefill_pages)
        self.d = make_node("d", decode_pages, policy=policy)
        self.tokens: dict[bytes, dict[int, int]] = {}
        self.endings: dict[bytes, str] = {}
        self.reasons: dict[bytes, str] = {}
        self.reports: list[PrefillReport] = []
        self.prefill_reports: dict[bytes, PrefillReport] = {}
        self.refusals: list[CommandRefused] = []
        self.unanswered: dict[tuple[str, str, bytes], msgspec.Struct] = {}
        self.num_copied = 0
        self.num_read = 0
        self.verify_error: str | None = None
        self.reads_fail = False
        self.obeys_stops = True  # else copies go on until copy_chance ends them
        self.tamper: Callable[[msgspec.Struct], msgspec.Struct] | None = None
        self.mail: list[tuple[str, object]] = []  # (to, event); bulk answers are never lost
        self.copies: list[tuple[Node, kv.WritePages | kv.ReadPages]] = []
        self.stopped: set[kv.TransferKey] = set()
        self.open_grants: set[int] = set()
        self.frozen: set[str] = set()  # neither step nor hear nor copy
        self.asleep: list[tuple[str, object]] = []  # what came for them meanwhile
        self.fences: list[bytes] = []
        self.notices: list[str] = []
        self.unwanted: set[bytes] = set()
        self.answers_adopt = True
        self.num_adopts = 0
        self.statuses: list[AttemptStatus] = []
        self.decode_reports: dict[bytes, DecodeReport] = {}
        self.prediction: LengthPrediction | None = None  # of requests to come

    def submit(
        self,
        n: int,
        num_prompt: int,
        max_tokens: int,
        *,
        local: bool = False,
        same_prompt_as: int | None = None,
        prompt_ids: list[int] | None = None,
        tenant: str = "default",
        with_decode: bool = True,
        attempt: int = 1,
        deadline_s: float | None = None,
        params: SamplingParams | None = None,
    ) -> bytes:
        request_id = n.to_bytes(16, "big")
        spec = RequestSpec(
            request_id=request_id,
            attempt=attempt,
            prompt_ids=TokenIds(prompt_ids or prompt(same_prompt_as or n, num_prompt)),
            output_ids=TokenIds(),
            params=params or SamplingParams(max_tokens=max_tokens, temperature=0.0),
            seed=1,
            choice=0,
            tenant=tenant,
            priority=0,
            targets=TARGETS,
            deadline_s=deadline_s,
            sequence=n,
            prediction=self.prediction,
        )
        if not local:
            self.command("p", Prefill(spec=spec, decode=self.d.ref), "prefill", request_id)
        decode = Decode(spec=spec, prefill=None if local else self.p.ref)
        if with_decode:
            self.command("d", decode, "decode", request_id)
        return request_id

    def cancel(self, request_id: bytes, attempt: int = 1) -> None:
        for name in ("p", "d"):
            self.unanswered = {
                k: v for k, v in self.unanswered.items() if k[0] != name or k[2] != request_id
            }
            self.command(name, Cancel(request_id=request_id, attempt=attempt), "cancel", request_id)

    def command(self, to: str, message: msgspec.Struct, kind: str, request_id: bytes) -> None:
        self.unanswered[(to, kind, request_id)] = message

    def node(self, name: str) -> Node:
        return self.p if name == "p" else self.d

    def post(self, to: str, event: object, *, lossy: bool = True) -> None:
        for _ in range(1 + (lossy and self.rng.random() < self.loss)):
            if not lossy or self.rng.random() >= self.loss:
                self.mail.append((to, event))

    def turn(self, dt: float = 0.05) -> None:
        """One exchange of mail, one step on each node."""
        self.now += dt
        for (to, _, _), message in list(self.unanswered.items()):
            self.post(to, FromPeer(GATEWAY, message))
        mail, self.mail = self.mail, []
        self.rng.shuffle(mail)
        for to, event in mail:
            if to in self.frozen:
                self.asleep.append((to, event))
            else:
                self.tell(to, event)
        self.finish_copies()
        for node in (self.p, self.d):
            if node.name not in self.frozen:
                self.step(node)
            node.ledger.check()

    def tell(self, to: str, event: object) -> None:
        node = self.node(to)
        self.execute(node, node.core.handle(event, self.now))  # type: ignore[arg-type]

    def thaw(self, name: str) -> None:
        """It runs again, and hears what it had missed."""
        self.frozen.discard(name)
        self.mail += [(to, event) for to, event in self.asleep if to == name]
        self.asleep = [(to, event) for to, event in self.asleep if to != name]

    def step(self, node: Node) -> None:
        self.execute(node, node.core.tick(self.now))
        step = node.core.plan(self.now)
        if step is not None:
            result = node.runner.run(step.batch)
            took_s = 0.001 * step.batch.num_tokens
            self.execute(node, node.core.computed(step, result, self.now + took_s))

    def execute(self, node: Node, actions: list[object]) -> None:
        for action in actions:
            match action:
                case Reply(peer, message) if peer == GATEWAY:
                    self.at_gateway(node.name, message)
                case Reply(peer, message):
                    to = peer.decode().split("/")[1]
                    self.post(to, FromNode(node.name, message))
                case SendToNode(ref, message):
                    if self.tamper is not None:
                        message = self.tamper(message)
                    self.post(ref.node_id, FromPeer(node.identity, message))
                case kv.WritePages() | kv.ReadPages():
                    self.copies.append((node, action))
                case kv.StopWriting(key):
                    self.stopped.add(key)
                case kv.VerifyPages():
                    self.verify(node, action)
                case kv.OpenGrant(grant_id):
                    self.open_grants.add(grant_id)
                case kv.CloseGrant(grant_id):
                    self.open_grants.discard(grant_id)
                    closed = kv.GrantClosed(grant_id, not self.is_mapped)
                    self.post(node.name, FromBulk(closed, False), lossy=False)
                case kv.FenceWriter(writer):
                    self.fences.append(writer)
                case NodeNotice(text):
                    self.notices.append(text)

    def finish_copies(self) -> None:
        """Some of the copies that run end, in any order; the audit covers those that go on."""
        for node, job in list(self.copies):
            # Where the owner's receiver writes, a closed grant takes nothing, and gives nothing.
            is_refused = not self.is_mapped and job.grant_id not in self.open_grants
            if not is_refused:
                self.audit(node, job)
            if node.name in self.frozen:
                continue
            is_stopped = is_refused or (self.obeys_stops and job.key in self.stopped)
            is_stopped |= self.reads_fail and isinstance(job, kv.ReadPages)
            if is_stopped or self.rng.random() < self.copy_chance:
                self.copies.remove((node, job))
                answer = self.fail_copy(job) if is_stopped else self.copy(node, job)
                self.post(node.name, FromBulk(answer, True), lossy=False)

    def audit(self, node: Node, job: kv.WritePages | kv.ReadPages) -> None:
        owner = self.node(job.owner.node_id).ledger
        if isinstance(job, kv.WritePages):
            held = {PageState.GRANTED, PageState.FILLING, PageState.DRAINING}
            assert {owner.state(p) for p in job.target_pages} <= held
            assert {node.ledger.state(p) for p in job.source_pages} <= {PageState.ACTIVE}
        else:
            held = {PageState.ACTIVE, PageState.DRAINING}
            assert {owner.state(p) for p in job.owner_pages} <= held
            assert {node.ledger.state(p) for p in job.own_pages} == {PageState.ACTIVE}

    @staticmethod
    def fail_copy(job: kv.WritePages | kv.ReadPages) -> kv.WriterEvent:
        if isinstance(job, kv.ReadPages):
            return kv.ReadFailed(job.key, "stopped")
        return kv.WriteFailed(job.key, job.first, "stopped")

    def copy(self, node: Node, job: kv.WritePages | kv.ReadPages) -> kv.WriterEvent:
        pool = self.node(job.owner.node_id).pool
        if isinstance(job, kv.ReadPages):
            node.pool[list(job.own_pages)] = pool[list(job.owner_pages)]
            self.num_read += len(job.own_pages)
            return kv.PagesRead(job.key, 1e-4 * len(job.own_pages))
        pool[list(job.target_pages)] = node.pool[list(job.source_pages)]
        self.num_copied += len(job.source_pages)
        checksum = hash_pages(pool, job.target_pages)
        chunk = ChunkSum(first=job.first, num_pages=len(job.source_pages), checksum=checksum)
        return kv.PagesWritten(job.key, chunk)

    def verify(self, node: Node, job: kv.VerifyPages) -> None:
        self.open_grants.discard(job.grant_id)
        error = self.verify_error
        for chunk in job.chunks:
            pages = job.pages[chunk.first : chunk.first + chunk.num_pages]
            if hash_pages(node.pool, pages) != chunk.checksum:
                error = "checksums differ"
        verified = kv.PagesVerified(job.key, job.grant_id, error)
        self.post(node.name, FromBulk(verified, False), lossy=False)

    @staticmethod
    def reserve_of(writer: bytes, *, n: int, num_tokens: int) -> FromPeer:
        """What a prefill node outside this world asks."""
        reserve = Reserve(
            request_id=n.to_bytes(16, "big"),
            attempt=1,
            gateway=GATEWAY,
            owner_incarnation=1,
            num_tokens=num_tokens,
            max_total_tokens=num_tokens,
            sequence=n,
            deadline_s=None,
            page_hashes=Blob(),
        )
        return FromPeer(writer, reserve)

    def kill(self, name: str) -> None:
        """The process ends for good, its copies with it; a pidfd tells the owners."""
        node = self.node(name)
        self.frozen.add(name)
        self.copies = [(n, job) for n, job in self.copies if n is not node]
        for other in (self.p, self.d):
            if other is not node:
                gone = kv.WriterGone(node.identity)
                self.post(other.name, FromBulk(gone, False), lossy=False)

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
        elif isinstance(message, Adopt):
            self.num_adopts += 1
            adopted = Adopted(
                request_id=message.request_id,
                attempt=message.attempt,
                is_wanted=message.request_id not in self.unwanted,
            )
            if self.answers_adopt:
                self.post(name, FromPeer(GATEWAY, adopted))
        elif isinstance(message, AttemptStatus):
            self.statuses.append(message)

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
        self.prefill_reports |= {request_id: r for request_id, _, r in emission.prefills}
        for ending in emission.endings:
            if self.has_all(ending):
                self.endings.setdefault(ending.request_id, ending.reason)
                self.reasons[ending.request_id] = f"{ending.code}: {ending.message}"
            if ending.decode is not None:
                self.decode_reports[ending.request_id] = ending.decode
        ended = tuple((e.request_id, e.attempt) for e in emission.endings if self.has_all(e))
        return EmissionAck(taken=tuple(taken), ended=ended)

    def has_all(self, ending: Ending) -> bool:
        known = self.tokens.get(ending.request_id, {})
        return all(i in known for i in range(ending.end_index))

    def run(self, num_turns: int = 4000, each_turn: Callable[[], None] | None = None) -> None:
        """Until nothing is left anywhere."""
        for _ in range(num_turns):
            self.turn()
            if each_turn is not None:
                each_turn()
            if not (self.mail or self.unanswered or self.copies) and self.is_idle():
                return
        raise AssertionError(f"not idle: {self.p.core.load(0)} {self.d.core.load(0)}")

    def run_until(self, is_reached: Callable[[], object], num_turns: int = 400) -> None:
        """Until something is so."""
        for _ in range(num_turns):
            if is_reached():
                return
            self.turn()
        raise AssertionError("it never came to that")

    def is_idle(self) -> bool:
        draining = self.p.ledger.counts().draining + self.d.ledger.counts().draining
        return self.p.core.is_idle and self.d.core.is_idle and not draining

    def assert_no_leak(self) -> None:
        for node in (self.p, self.d):
            counts = node.ledger.counts()
            assert counts.free + counts.cached == node.ledger.num_pages, counts
            assert node.ledger.num_promised == 0


def stream(world: World, request_id: bytes) -> list[int]:
    tokens = world.tokens[request_id]
    return [tokens[i] for i in range(len(tokens))]
