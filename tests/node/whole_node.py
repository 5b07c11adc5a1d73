"""A whole node without sockets, threads or clock, and the memory that it owns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from decode_node.guest import DecodeGuest
from decode_node.preemption import Preemption, PreemptionOptions, Swap
from kv_transfer.incoming import IncomingTransfers
from kv_transfer.outgoing import OutgoingTransfers
from node.core import Admitted, Limits, NodeCore
from node.emitter import Emitter
from node.fake_runner import FAKE_LAYOUT, FakeRunner
from node.growth import Overcommit
from node.ledger import PageLedger
from node.page_store import HostPageStore
from node.resident import Resident
from node.runner import Runner
from node.state import NodeIdentity, NodeState
from prefill_node.role import SharedPrefill
from scheduling.batch.catalogue import is_steady_policy, make_batch_policy
from scheduling.costs import UNKNOWN_COSTS
from scheduling.prefill.fifo import FifoPrefill
from scheduling.views import BatchPolicy, PrefillPolicy, Services
from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity, NodeRef
from tandem.messages.membership import RoleWeights

VOCAB = 1000


@dataclass(frozen=True)
class Memory:
    """A device: `pool` is uint8 [pages, page_bytes], and what `runner` computes over."""

    layout: KVLayout
    pool: NDArray[np.uint8]
    runner: Runner
    ledger: PageLedger
    vocab_size: int = VOCAB


def fake_memory(num_pages: int) -> Memory:
    pool = np.zeros((num_pages, FAKE_LAYOUT.page_bytes), np.uint8)
    return Memory(FAKE_LAYOUT, pool, FakeRunner(pool, vocab_size=VOCAB), PageLedger(num_pages))


def identity_of(name: str, memory: Memory) -> NodeIdentity:
    model = ModelIdentity(
        served_name="fake",
        weights_fingerprint="w",
        tokenizer_fingerprint="t",
        dtype="float32",
        max_model_len=4096,
        vocab_size=memory.vocab_size,
    )
    return NodeIdentity(
        node_id=name, incarnation=1, model=model, layout=memory.layout, eos_token_ids=()
    )


class Node:
    """One node and the memory it owns."""

    def __init__(
        self,
        name: str,
        num_pages: int,
        *,
        policy: str = "fifo",
        rows: int = 8,
        make_memory: Callable[[int], Memory] = fake_memory,
        overcommit: Overcommit | None = None,
        preemption: Literal["auto", "recompute", "swap"] = "auto",
        num_swap_pages: int = 1000,
        batch_policy: BatchPolicy | None = None,
        prefill_policy: PrefillPolicy | None = None,
        is_steady: bool | None = None,
    ) -> None:
        self.name = name
        self.identity = f"node/{name}/1".encode()
        memory = make_memory(num_pages)
        self.pool, self.runner, self.ledger = memory.pool, memory.runner, memory.ledger
        identity = identity_of(name, memory)
        overcommit = Overcommit() if overcommit is None else overcommit
        self.state = NodeState(identity, self.ledger, Emitter(name, 1), overcommit)
        services = Services(UNKNOWN_COSTS)

        def start_local(resident: Resident, now: float) -> None:
            self.prefill.start_local(resident, now)

        self.preemption = Preemption(
            self.state,
            Swap(HostPageStore(self.pool), num_swap_pages, 1e9),
            PreemptionOptions(preemption),
            start_local=start_local,
        )
        self.decode = DecodeGuest(
            self.state,
            IncomingTransfers(self.state.pool, memory.layout, incarnation=1),
            self.preemption,
            start_local=start_local,
        )
        self.prefill = SharedPrefill(
            self.state,
            OutgoingTransfers(memory.layout.page_size),
            prefill_policy or FifoPrefill(),
            lookahead_tokens=200,
            local=self.decode,
            services=services,
        )
        self.core = NodeCore(
            self.state,
            prefill=self.prefill,
            decode=self.decode,
            policy=batch_policy or make_batch_policy(policy),
            is_steady=batch_policy is None and is_steady_policy(policy)
            if is_steady is None
            else is_steady,
            limits=Limits(rows, 40, RoleWeights(prefill=1, decode=1)),
            services=services,
        )
        self.core.handle(Admitted(1), 0.0)

    @property
    def ref(self) -> NodeRef:
        return NodeRef(node_id=self.name, incarnation=1, epoch=1, control_address="tcp://x")
