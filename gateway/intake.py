"""From `Submit` to the ledger: whose it is, whether there is room, its tokens."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

from gateway.actions import NewRequest
from gateway.admission import Offer, Origin, Rejected, admit, check_submit
from gateway.config import GatewayConfig
from gateway.evaluating import Entered
from gateway.gate import OverloadGate, Wish
from gateway.http.services import EvaluationAsked
from gateway.lengths import Lengths
from gateway.room import Room
from gateway.tenant_file import TenantFile
from gateway.tenants import Tenants
from gateway.tokenize import Tokenization
from tandem.frames import TokenIds
from tandem.messages.client import Done, Refused, Submit
from tandem.messages.placement import Placed, PlaceRefused, TurnedAway

logger = logging.getLogger(__name__)
STOPPING = "this gateway is stopping: submit to another one"
KeyOf = Callable[[bytes], str | None]


class Intake:
    """Takes requests on one event loop. Refusals come before any tokenising.

    `offer` is what is served now, `key_of` names a client's key, `submit` takes a request into the
    ledger, `refuse` tells a client why not.
    """

    def __init__(
        self,
        config: GatewayConfig,
        tokenization: Tokenization,
        file: TenantFile,
        lengths: Lengths,
        *,
        offer: Callable[[], Offer],
        key_of: KeyOf,
        submit: Callable[[NewRequest], None],
        refuse: Callable[[bytes, Refused], object],
    ) -> None:
        self._file = file
        self._tenants = Tenants(file.tenants, time.monotonic())
        self._gate = OverloadGate()
        self._room = Room(
            max_live=config.max_live_requests,
            max_bytes=config.max_prompt_mib << 20,
            weight=self._tenants.weight,
        )
        self._tokenization = tokenization
        self._lengths = lengths
        self._offer = offer
        self._key_of = key_of
        self._submit = submit
        self._refuse = refuse
        self._tasks: set[asyncio.Task[None]] = set()
        self._tokenising: set[tuple[bytes, str]] = set()
        self.is_closed = False

    @property
    def num_tokenising(self) -> int:
        """Requests that are not in the ledger yet."""
        return len(self._tasks)

    def take(self, client: bytes, submit: Submit, request_id: bytes | None = None) -> None:
        """Refuse a request at once, or tokenise it; one that is being tokenised is left alone.

        `request_id`: where this process has made one already, never a client's.
        """
        if (client, submit.label) in self._tokenising:
            return
        now = time.monotonic()
        tenant = self._tenants.of_key(self._key_of(client))
        num_bytes = _size(submit)
        try:
            if self.is_closed:
                raise Rejected("unavailable", STOPPING)
            self._room.check(tenant, num_bytes, self._tenants.max_live(tenant), now)
            submit = self._tenants.with_class(tenant, submit)
            check_submit(submit, self._offer())
            wish = self._pass_gate(tenant, submit, num_bytes, now)
            self._tenants.take_rate(tenant, now)
        except Rejected as rejected:
            self._reject(client, submit, rejected)
            return
        origin = Origin(
            client=client,
            request_id=request_id or secrets.token_bytes(16),
            random_seed=secrets.randbits(64),
            received=now,
            received_unix_s=time.time(),
            tenant=tenant,
            tenant_weight=self._tenants.weight(tenant),
        )
        self._room.take(origin.request_id, tenant, num_bytes)
        if wish is not None:
            self._gate.asked(origin.request_id, wish)
        if submit.prompt_ids is not None and submit.params.json_schema is None:
            self._enter(submit, origin, submit.prompt_ids)
            return
        self._tokenising.add((client, submit.label))
        task = asyncio.create_task(self._tokenise(submit, origin))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _pass_gate(self, tenant: str, submit: Submit, num_bytes: int, now: float) -> Wish | None:
        """What the gate is told of a request; None of one that goes on with what was begun.

        Raises Rejected where others like it were refused for overload a moment ago.
        """
        if submit.resume is not None:
            return None
        wish = _wish(tenant, submit, num_bytes)
        _check_wait(tenant, self._gate.wait_s(wish, now))
        return wish

    def turn_away(self, submit: Submit, key: str | None, num_bytes: int) -> None:
        """Raises Rejected where a request would not pass the gate, before it has any tokens.

        `num_bytes` are of its prompt, about. One that passes here is looked at again by `take`.
        """
        tenant = self._tenants.of_key(key)
        submit = self._tenants.with_class(tenant, submit)
        _check_wait(tenant, self._gate.look(_wish(tenant, submit, num_bytes), time.monotonic()))

    @property
    def turned_away(self) -> tuple[TurnedAway, ...]:
        """What the gate refused since the start."""
        counts = self._gate.num_refused.items()
        return tuple(TurnedAway(sla_class=name, num_requests=num) for name, num in counts)

    def note_answer(self, answer: Placed | PlaceRefused, now: float) -> None:
        """The coordinator has nodes for a request, or none."""
        if isinstance(answer, Placed):
            self._gate.placed(answer.request_id, now)
        elif answer.code == "overloaded" and answer.retry_after_s is not None:
            self._gate.refused(answer.request_id, answer.retry_after_s, now)

    async def _tokenise(self, submit: Submit, origin: Origin) -> None:
        try:
            ids = await self._tokenization.prompt_ids(submit)
        except Rejected as rejected:
            self._give_up(submit, origin, rejected)
        except Exception:  # an error of ours: the client must not wait for ever
            logger.exception("cannot tokenise a request")
            self._give_up(submit, origin, _failure())
        else:
            self._enter(submit, origin, ids)
        finally:
            self._tokenising.discard((origin.client, submit.label))

    def _enter(self, submit: Submit, origin: Origin, ids: TokenIds) -> None:
        try:
            new = admit(submit, ids, self._offer(), origin)
        except Rejected as rejected:
            self._give_up(submit, origin, rejected)
        except Exception:
            logger.exception("cannot admit a request")
            self._give_up(submit, origin, _failure())
        else:
            self._room.resize(origin.request_id, 4 * (len(new.prompt_ids) + len(new.delivered)))
            self._submit(self._lengths.predicted(submit, new))

    def _give_up(self, submit: Submit, origin: Origin, rejected: Rejected) -> None:
        self._room.release(origin.request_id, time.monotonic(), has_run=False)
        self._gate.forget(origin.request_id)
        self._reject(origin.client, submit, rejected)

    def _reject(self, client: bytes, submit: Submit, rejected: Rejected) -> None:
        refused = Refused(
            label=submit.label,
            code=rejected.code,
            message=str(rejected)[:2000],
            retry_after_s=rejected.retry_after_s,
        )
        self._refuse(client, refused)

    def enter_evaluation(
        self, request_id: bytes, asked: EvaluationAsked, key: str | None
    ) -> Entered:
        """Make room for work of prefill alone, under its tenant's limits. Raises Rejected."""
        now = time.monotonic()
        tenant, num_bytes = self._tenants.of_key(key), 4 * len(asked.prompt_ids)
        if self.is_closed:
            raise Rejected("unavailable", STOPPING)
        self._room.check(tenant, num_bytes, self._tenants.max_live(tenant), now)
        wanted = Submit(label="", sla_class=asked.sla_class, ttft_ms=asked.ttft_ms)
        own_class = self._tenants.with_class(tenant, wanted).sla_class
        self._tenants.take_rate(tenant, now)
        self._room.take(request_id, tenant, num_bytes)
        return Entered(tenant, self._tenants.weight(tenant), own_class)

    def leave_evaluation(self, request_id: bytes) -> None:
        """It is answered, or nobody waits for it."""
        self._room.release(request_id, time.monotonic(), has_run=True)

    def note_end(self, done: Done) -> None:
        """A request of the ledger's ended."""
        self._room.release(done.request_id, time.monotonic(), has_run=True)
        self._gate.forget(done.request_id)
        self._lengths.ended(done)

    def reread_tenants(self) -> None:
        """Take the tenants' file again where it has changed."""
        tenants = self._file.changed()
        if tenants is not None:
            self._tenants.replace(tenants, time.monotonic())

    async def close(self) -> None:
        """Drop what is being tokenised, and end the threads."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tokenization.close()


def _failure() -> Rejected:
    return Rejected("internal", "the gateway failed on this request: its log says why")


def _wish(tenant: str, submit: Submit, num_bytes: int) -> Wish:
    return Wish(
        tenant=tenant,
        sla_class=submit.sla_class,
        ttft_ms=submit.ttft_ms,
        tpot_ms=submit.tpot_ms,
        priority=submit.priority,
        num_bytes=num_bytes,
    )


def _check_wait(tenant: str, wait_s: float | None) -> None:
    if wait_s is not None:
        text = (
            f"overloaded: requests like this one of tenant {tenant} were refused a moment ago, "
            f"and there is room for few of them; try again in {wait_s:.1f} s"
        )
        raise Rejected("overloaded", text, wait_s)


def _size(submit: Submit) -> int:
    """Bytes that a request brings, before they are tokens."""
    num_bytes = len(submit.prompt or b"") + 4 * len(submit.prompt_ids or b"")
    num_bytes += sum(len(turn.content) for turn in submit.chat)
    return num_bytes if submit.resume is None else num_bytes + 4 * len(submit.resume.output_ids)
