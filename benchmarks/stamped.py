"""Starts a node that says when things happened to requests: `python -m benchmarks.stamped MODULE`.

No process of the product has such a switch: this module wraps a few methods before the product's
own composition root runs. Moments are on the clock that all processes of a host share. They are
printed now and then by a thread of their own, so that printing delays none of them.
"""

import re
import runpy
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import kv_transfer.requests
from decode_node.guest import DecodeGuest
from kv_transfer import actions as kv
from kv_transfer.departures import Departure
from kv_transfer.incoming import IncomingTransfers
from node.runner import Sampled
from prefill_node.job import Job
from scheduling.views import RequestKey
from tandem.child_process import ProcessPlan
from tandem.messages.handoff import Commit, FromWriter

TELL_S = 0.1
# In the order in which they come: the prompt's last step returned; its last page was copied, so
# that the Commit leaves; the Commit was heard; the pages are verified; the request is in a step.
PREFILL_END, WRITTEN, COMMIT, VERIFIED, ADMITTED = MOMENTS = (
    *("prefill_end", "written", "commit", "verified", "admitted"),
)
TOKEN = "token"  # each of a decode node, but the first one of a request
_STAMP = re.compile(r"^stamp (?P<moment>\w+) (?P<request_id>[0-9a-f]{32}) (?P<at>[0-9.]+)$")


class Stamps:
    """On the node's side: notes moments, prints them."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, bytes, float]] = deque()
        self._thread = threading.Thread(target=self._tell, name="stamps", daemon=True)

    def start(self) -> None:
        """Wrap what notes the moments, begin to tell them."""
        self._wrap_writer()
        self._wrap_owner()
        self._wrap_steps()
        self._thread.start()

    def _note(self, moment: str, key: RequestKey, at: float) -> None:
        self._waiting.append((moment, key[0], at))

    def _wrap_writer(self) -> None:
        first_token, commit = Job.first_token, kv_transfer.requests.commit

        def noted_first_token(
            job: Job, sampled: Sampled, node_id: str, now: float
        ) -> kv.FirstToken:
            self._note(PREFILL_END, job.resident.key, now)
            return first_token(job, sampled, node_id, now)

        def noted_commit(transfer: Departure) -> Commit:
            self._note(WRITTEN, transfer.key, time.monotonic())
            return commit(transfer)

        _replace(Job, "first_token", noted_first_token)
        _replace(kv_transfer.requests, "commit", noted_commit)

    def _wrap_owner(self) -> None:
        handle, bulk_event = IncomingTransfers.handle, IncomingTransfers.bulk_event

        def noted_handle(
            machine: IncomingTransfers, writer: bytes, message: FromWriter, now: float
        ) -> list[kv.IncomingAction]:
            if isinstance(message, Commit):
                self._note(COMMIT, (message.request_id, message.attempt), now)
            return handle(machine, writer, message, now)

        def noted_event(
            machine: IncomingTransfers, event: kv.OwnerEvent, now: float
        ) -> list[kv.IncomingAction]:
            if isinstance(event, kv.PagesVerified):
                self._note(VERIFIED, event.key, now)
            return bulk_event(machine, event, now)

        _replace(IncomingTransfers, "handle", noted_handle)
        _replace(IncomingTransfers, "bulk_event", noted_event)

    def _wrap_steps(self) -> None:
        admit, computed = DecodeGuest.admit, DecodeGuest.computed

        def noted_admit(guest: DecodeGuest, key: RequestKey, now: float) -> bool:
            self._note(ADMITTED, key, now)
            return admit(guest, key, now)

        def noted_computed(
            guest: DecodeGuest,
            keys: Sequence[RequestKey],
            sampled: Sequence[Sampled | None],
            now: float,
        ) -> None:
            for key in keys:
                self._note(TOKEN, key, now)
            computed(guest, keys, sampled, now)

        _replace(DecodeGuest, "admit", noted_admit)
        _replace(DecodeGuest, "computed", noted_computed)

    def _tell(self) -> None:
        while True:
            time.sleep(TELL_S)
            while self._waiting:
                moment, request_id, at = self._waiting.popleft()
                sys.stdout.write(f"stamp {moment} {request_id.hex()} {at:.7f}\n")
            sys.stdout.flush()


class StampBook:
    """On the launcher's side: the moments that nodes told, by moment and request, in order."""

    def __init__(self) -> None:
        self._at_s: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._came = threading.Condition()

    def take_line(self, name: str, line: str) -> None:
        """A line of a process's output: a `LineSink`."""
        if (match := _STAMP.match(line)) is not None:
            with self._came:
                self._at_s[(match["moment"], match["request_id"])].append(float(match["at"]))
                self._came.notify_all()

    def wait_for(self, moment: str, request_id: str, timeout_s: float = 5.0) -> float:
        """When it happened first. Raises TimeoutError where nobody tells."""
        at_s = self._at_s
        with self._came:
            if not self._came.wait_for(lambda: (moment, request_id) in at_s, timeout_s):
                raise TimeoutError(f"no node told the moment {moment!r} of request {request_id}")
            return at_s[(moment, request_id)][0]

    def tokens_of(self, request_id: str) -> list[float]:
        """When each token of a request was drawn by its decode node, as far as was told."""
        with self._came:
            return list(self._at_s.get((TOKEN, request_id), ()))


def stamped(plan: ProcessPlan) -> ProcessPlan:
    """The same process, started here where it is a node: for `LocalCluster(started_as=...)`."""
    if not plan.module.endswith("_node"):
        return plan
    return replace(plan, module="benchmarks.stamped", flags=(plan.module, *plan.flags))


def _replace(whose: object, name: str, function: Callable[..., object]) -> None:
    setattr(whose, name, function)


def main() -> None:
    """Wrap, then run the module as `python -m` would."""
    module, *flags = sys.argv[1:]
    Stamps().start()
    sys.argv = [f"{module}/__main__.py", *flags]
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main()
