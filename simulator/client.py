"""The simulated clients: they submit, acknowledge, come back, cancel, and judge every answer."""

from collections.abc import Callable

import msgspec

from simulator.network import Link, Network
from simulator.oracle import Request
from simulator.process import Process
from tandem.frames import TokenIds
from tandem.messages.client import (
    Accepted,
    CancelRequest,
    Done,
    Output,
    Received,
    Refused,
    Resume,
    ResumePoint,
    ResumeRefused,
    Submit,
)

BEAT_S = 1.0
RETRY_S = 0.3


class Client:
    """One request over one connection at a time. `pick_gateway` names a living one, if any."""

    def __init__(
        self,
        process: Process,
        network: Network,
        request: Request,
        pick_gateway: Callable[[], str | None],
    ) -> None:
        self.request = request
        self.has_begun = False
        self.address: str | None = None
        self._process = process
        self._network = network
        self._pick_gateway = pick_gateway
        self._accepted: Accepted | None = None
        self._link: Link | None = None
        self._seed: int | None = None
        self._num_links = 0
        self._num_resumes = 0
        self._is_resuming = False
        process.after(request.submit_at - process.clock.now, self._submit)
        if request.cancel_at is not None:
            process.after(request.cancel_at - process.clock.now, self.cancel)

    def _submit(self) -> None:
        """To any gateway; with what it has, where another one had accepted it."""
        request, accepted = self.request, self._accepted
        if not self.has_begun:
            self.has_begun = True
            self._beat()
        address = self._pick_gateway()
        if address is None:
            self._process.after(RETRY_S, self._submit)
            return
        resume, params = None, request.params
        if accepted is not None:
            self._seed, self._accepted = accepted.seed, None
        if self._seed is not None:
            self._process.clock.reach("resumed on another gateway")
            resume = ResumePoint(output_ids=TokenIds(request.tokens), num_chars=len(request.text))
            params = msgspec.structs.replace(params, seed=self._seed)
        submit = Submit(
            label=str(request.number),
            prompt_ids=TokenIds(request.prompt),
            params=params,
            deadline_s=request.deadline_s,
            resume=resume,
        )
        self._send(self._dial(address), submit)

    def _dial(self, address: str) -> Link:
        if self._link is not None:
            self._link.is_open = False
        self._num_links += 1
        self._num_resumes = 0
        identity = f"client/{self.request.number}/{self._num_links}".encode()
        link = self._network.dial(self._process, identity, address, self._receive, is_reliable=True)
        self.address, self._link = address, link
        return link

    def _send(self, link: Link | None, message: msgspec.Struct) -> None:
        assert link is not None, "it has dialled"
        self._network.send(link, message)

    def cancel(self) -> None:
        """Stop the request."""
        self.request.is_cancelled = True
        if self._accepted is not None and not self.request.is_over:
            self._send(self._link, CancelRequest(request_id=self._accepted.request_id))

    def gateway_died(self, address: str) -> None:
        """The connection broke, and nobody answers at the address any more."""
        if address == self.address and self.has_begun and not self.request.is_over:
            self._submit()

    def reconnect(self) -> None:
        """The connection broke, the gateway lives."""
        if self._accepted is not None and self.address is not None:
            self._process.clock.reach("client reconnects")
            self._is_resuming = True
            self._resume(self._dial(self.address), self._accepted)

    def _resume(self, link: Link, accepted: Accepted) -> None:
        """Until it is answered: a gateway drops what comes too often."""
        if self._is_resuming and link is self._link:
            resume = Resume(request_id=accepted.request_id, next_index=len(self.request.tokens))
            self._num_resumes += 1
            self._send(link, resume)
            self._process.after(BEAT_S, self._resume, link, accepted)

    def hang_up(self) -> None:
        """Go without a word, for good."""
        if self._link is not None:
            self._link.is_open = False
        self.request.is_lost = True

    def _receive(self, message: msgspec.Struct) -> None:
        request = self.request
        match message:
            case Accepted():
                self._accepted, self._is_resuming = message, False
                if request.is_cancelled:
                    self.cancel()
            case Output() if self._num_resumes > 1 and message.index < len(request.tokens):
                request.compare(message)  # a repeated question is answered twice
            case Output():
                request.take(message)
            case Done() if request.done is None:
                request.finish(message, self._process.clock.now)
                self._confirm(message)
            case Done():
                self._confirm(message)
            case ResumeRefused():
                self._submit()
            case Refused():
                request.refused = message.message

    def _confirm(self, done: Done) -> None:
        received = Received(
            request_id=done.request_id, next_index=len(self.request.tokens), is_done=True
        )
        self._send(self._link, received)

    def _beat(self) -> None:
        """Say what is here, again and again."""
        if self.request.is_over:
            return
        if self._accepted is not None:
            received = Received(
                request_id=self._accepted.request_id, next_index=len(self.request.tokens)
            )
            self._send(self._link, received)
        self._process.after(BEAT_S, self._beat)
