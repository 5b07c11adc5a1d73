"""From `Submit` to the ledger: whose it is, whether there is room, its tokens."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

from gateway.actions import NewRequest
from gateway.admission import Offer, Origin, Rejected, admit, check_submit
from gateway.config import GatewayConfig
from gateway.lengths import Lengths
from gateway.room import Room
from gateway.tenant_file import TenantFile
from gateway.tenants import Tenants
from gateway.tokenize import Tokenization
from tandem.messages.client import Done, Refused, Submit

logger = logging.getLogger(__name__)
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

    def take(self, client: bytes, submit: Submit) -> None:
        """Refuse a request at once, or tokenise it; one that is being tokenised is left alone."""
        if (client, submit.label) in self._tokenising:
            return
        now = time.monotonic()
        tenant = self._tenants.of_key(self._key_of(client))
        num_bytes = _size(submit)
        try:
            if self.is_closed:
                raise Rejected("unavailable", "this gateway is stopping: submit to another one")
            self._room.check(tenant, num_bytes, self._tenants.max_live(tenant), now)
            submit = self._tenants.with_class(tenant, submit)
            check_submit(submit, self._offer())
            self._tenants.take_rate(tenant, now)
        except Rejected as rejected:
            self._reject(client, submit, rejected)
            return
        origin = Origin(
            client=client,
            request_id=secrets.token_bytes(16),
            random_seed=secrets.randbits(64),
            received=now,
            received_unix_s=time.time(),
            tenant=tenant,
            tenant_weight=self._tenants.weight(tenant),
        )
        self._room.take(origin.request_id, tenant, num_bytes)
        self._tokenising.add((client, submit.label))
        task = asyncio.create_task(self._tokenise(submit, origin))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tokenise(self, submit: Submit, origin: Origin) -> None:
        try:
            ids = await self._tokenization.prompt_ids(submit)
            new = admit(submit, ids, self._offer(), origin)
        except Rejected as rejected:
            self._give_up(submit, origin, rejected)
        except Exception:  # an error of ours: the client must not wait for ever
            logger.exception("cannot admit a request")
            text = "the gateway failed on this request: its log says why"
            self._give_up(submit, origin, Rejected("internal", text))
        else:
            self._room.resize(origin.request_id, 4 * (len(new.prompt_ids) + len(new.delivered)))
            self._submit(self._lengths.predicted(submit, new))
        finally:
            self._tokenising.discard((origin.client, submit.label))

    def _give_up(self, submit: Submit, origin: Origin, rejected: Rejected) -> None:
        self._room.release(origin.request_id, time.monotonic(), has_run=False)
        self._reject(origin.client, submit, rejected)

    def _reject(self, client: bytes, submit: Submit, rejected: Rejected) -> None:
        refused = Refused(
            label=submit.label,
            code=rejected.code,
            message=str(rejected)[:2000],
            retry_after_s=rejected.retry_after_s,
        )
        self._refuse(client, refused)

    def note_end(self, done: Done) -> None:
        """A request of the ledger's ended."""
        self._room.release(done.request_id, time.monotonic(), has_run=True)
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


def _size(submit: Submit) -> int:
    """Bytes that a request brings, before they are tokens."""
    num_bytes = len(submit.prompt or b"") + 4 * len(submit.prompt_ids or b"")
    num_bytes += sum(len(turn.content) for turn in submit.chat)
    return num_bytes if submit.resume is None else num_bytes + 4 * len(submit.resume.output_ids)
