"""Which of an owner's offers is the fastest from here: each is opened and measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import zmq

from kv_transfer.transport import PeerPool
from tandem.messages.handoff import TransportOffer

# What an owner, or the end of this node (ContextTerminated), makes of an attempt to reach it.
PROBLEMS = (ValueError, zmq.ZMQError, msgspec.MsgspecError)


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of an offer: an open pool and its speed, or why there is none."""

    transport: str
    pool: PeerPool | None = None
    bytes_per_s: float = 0.0
    problem: str | None = None

    def __str__(self) -> str:
        if self.problem is not None:
            return f"{self.transport} not ({self.problem})"
        return f"{self.transport} {self.bytes_per_s / 1e9:.1f} GB/s"


def try_offer(offer: TransportOffer, make_pool: Callable[[TransportOffer], PeerPool]) -> Trial:
    """Open and measure."""
    try:
        pool = make_pool(offer)
    except PROBLEMS as error:
        return Trial(offer.transport, problem=str(error))
    try:
        return Trial(offer.transport, pool, pool.measure())
    except PROBLEMS as error:
        pool.close(str(error))
        return Trial(offer.transport, problem=str(error))
    except BaseException:
        pool.close("the measurement failed")  # its socket would keep the context from ending
        raise


def fastest(trials: Sequence[Trial]) -> Trial | None:
    """The one to use; None where none worked."""
    return max((t for t in trials if t.pool is not None), key=lambda t: t.bytes_per_s, default=None)


def explain(node_id: str, trials: Sequence[Trial], taken: Trial) -> str:
    """The line of the log: what was measured, what is used."""
    return f"to {node_id}: {', '.join(map(str, trials))}: {taken.transport}"
