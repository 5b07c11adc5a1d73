"""Starts a node or a gateway with guards taken out: to measure what they cost, never to serve.

`python -m scripts.cost.altered MODULE GUARDS [flags of MODULE]`, where GUARDS is a list like
`checksums,acknowledgements` or `nothing`. No process of the product has such a switch: this module
replaces classes before the product's own composition root runs, and is part of no package. A node
without checksums is of no use to an honest one, whose verification refuses its hand-offs.

All processes of the benchmark start here, those with every guard too: nodes also say when a prompt
was computed and when a request was admitted, on the clock that all processes of a host share.
"""

import runpy
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace

import msgspec

import gateway.clients
import gateway.node_links
import kv_transfer.checksum
import node.emitter
from decode_node.guest import DecodeGuest
from gateway.actions import ToClient
from gateway.clients import Sessions
from gateway.node_links import NodeLinks
from kv_transfer.actions import FirstToken
from kv_transfer.checksum import HostPages
from node.emitter import Emitter
from node.runner import Sampled
from prefill_node.job import Job
from scheduling.views import RequestKey
from tandem.messages.common import NodeRef
from tandem.messages.serving import Emission, EmissionAck

NOTHING = "nothing"
TELL_S = 0.1
PREFILL_END, ADMITTED = "prefill_end", "admitted"
Patch = tuple[object, str, object]  # whose, which, replaced by


class ConstantHash:
    """In place of xxh3: looks at nothing."""

    def __init__(self, data: bytes = b"") -> None:
        """Like a hash."""

    def update(self, data: object) -> None:
        """Ignore it."""

    def digest(self) -> bytes:
        """The same for all."""
        return bytes(8)


def feed_nothing(pages: HostPages, hasher: object, indices: tuple[int, ...]) -> None:
    """An owner does not gather pages that nobody hashes."""


class ForgetfulEmitter(Emitter):
    """Tokens are gone once they are in a message: no acknowledgement comes, nothing is resent."""

    def flush(self, epoch: int, now: float) -> list[tuple[bytes, Emission]]:
        """What is new, for the only time."""
        emissions = super().flush(epoch, now)
        for peer, emission in emissions:
            streams = self._streams[peer]
            for delta in emission.deltas:
                stream = streams[(delta.request_id, delta.attempt)]
                stream.ids.clear()
                stream.logprobs.clear()
                stream.base = stream.sent
                if stream.is_finished:
                    self.close(peer, (delta.request_id, delta.attempt))
            for ending in emission.endings:
                self.close(peer, (ending.request_id, ending.attempt))
        return emissions


class QuietLinks(NodeLinks):
    """A gateway that acknowledges no emission (it makes the message and drops it)."""

    def send(self, node: NodeRef, message: msgspec.Struct) -> None:
        """Everything else is sent."""
        if not isinstance(message, EmissionAck):
            super().send(node, message)


class NoSessions(Sessions):
    """Tells clients each thing once, keeps nothing, expects no answer (`silence_s` is None)."""

    def tell(self, client: bytes, message: msgspec.Struct, now: float) -> Iterator[ToClient]:
        """Pass it on."""
        yield ToClient(client, message)

    def owner_of(self, client: bytes, request_id: bytes, now: float) -> bytes | None:
        """Whoever asks."""
        return client


GUARDS: dict[str, tuple[Patch, ...]] = {
    "checksums": (
        (kv_transfer.checksum, "xxhash", SimpleNamespace(xxh3_64=ConstantHash)),
        (HostPages, "feed", feed_nothing),
    ),
    "acknowledgements": (
        (node.emitter, "Emitter", ForgetfulEmitter),
        (gateway.node_links, "NodeLinks", QuietLinks),
        (gateway.clients, "Sessions", NoSessions),
    ),
}


class Stamps:
    """Moments of requests, printed now and then so that printing delays none of them."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, bytes, float]] = deque()
        self._thread = threading.Thread(target=self._tell, name="stamps", daemon=True)

    def patches(self) -> tuple[Patch, ...]:
        """What notes the moments; starts the thread that tells them."""
        self._thread.start()
        note = self._waiting.append
        first_token, admit = Job.first_token, DecodeGuest.admit

        def noted_first_token(job: Job, sampled: Sampled, node_id: str, now: float) -> FirstToken:
            note((PREFILL_END, job.resident.key[0], now))
            return first_token(job, sampled, node_id, now)

        def noted_admit(guest: DecodeGuest, key: RequestKey, now: float) -> None:
            note((ADMITTED, key[0], now))
            admit(guest, key, now)

        return ((Job, "first_token", noted_first_token), (DecodeGuest, "admit", noted_admit))

    def _tell(self) -> None:
        while True:
            time.sleep(TELL_S)
            while self._waiting:
                moment, request_id, at = self._waiting.popleft()
                sys.stdout.write(f"stamp {moment} {request_id.hex()} {at:.7f}\n")
            sys.stdout.flush()


def take_out(guards: str) -> tuple[Patch, ...]:
    """The patches for a list of guards. Raises ValueError for one that there is not."""
    names = [] if guards == NOTHING else guards.split(",")
    if unknown := set(names) - GUARDS.keys():
        raise ValueError(f"no such guard: {sorted(unknown)}; there are {sorted(GUARDS)}")
    return tuple(patch for name in names for patch in GUARDS[name])


def main() -> None:
    """Replace, then run the module as `python -m` would."""
    module, guards, *flags = sys.argv[1:]
    for whose, which, replacement in (*take_out(guards), *Stamps().patches()):
        setattr(whose, which, replacement)
    if guards != NOTHING:
        print(f"for measuring only: {module} without {guards}", flush=True)
    sys.argv = [f"{module}/__main__.py", *flags]
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main()
