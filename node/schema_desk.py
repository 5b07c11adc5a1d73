"""Commands whose answers must keep a JSON schema wait here until it is compiled.

Compiling takes from under a millisecond to some hundreds; the step thread, which everybody's tokens
wait for, is spared that. Held back so a command is only a late one: what overtakes it, a cancel
say, is dealt with as on a network.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from node.device import Schemas
from node.refusals import refusal
from tandem.json_schema import NoGrammarLibraryError
from tandem.messages.serving import CommandRefused, Decode, Prefill

MAX_HELD = 1024  # further ones are dropped, and sent again by their gateways
log = logging.getLogger("tandem.node")
Command = Prefill | Decode


class SchemaDesk:
    """Lives on the I/O thread's event loop. `schemas` None: nothing waits.

    `take` passes a command on, `answer` tells its gateway why it is refused.
    """

    def __init__(
        self,
        schemas: Schemas | None,
        *,
        take: Callable[[bytes, Command], object],
        answer: Callable[[bytes, CommandRefused], object],
    ) -> None:
        self._schemas = schemas
        self._take = take
        self._answer = answer
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="schemas")  # starts when needed
        self._tasks: set[asyncio.Task[None]] = set()

    def is_for(self, message: object) -> bool:
        """Whether `handle` must see it before anybody else does."""
        if self._schemas is None or not isinstance(message, Command):
            return False
        schema = message.spec.params.json_schema
        return schema is not None and not self._schemas.is_prepared(schema)

    def handle(self, peer: bytes, command: Command) -> None:
        """Pass it on, or refuse it, once its schema is compiled."""
        if len(self._tasks) >= MAX_HELD:
            log.warning("%d commands wait for their schemas, one is dropped", MAX_HELD)
            return
        task = asyncio.create_task(self._prepare(peer, command))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _prepare(self, peer: bytes, command: Command) -> None:
        schemas, schema = self._schemas, command.spec.params.json_schema
        assert schemas is not None and schema is not None
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._pool, schemas.prepare, schema)
        except NoGrammarLibraryError as error:  # another node may have it
            self._answer(peer, refusal(command, "unavailable", str(error)))
        except ValueError as error:
            self._answer(peer, refusal(command, "invalid_request", str(error)))
        except Exception as error:
            log.exception("cannot compile a JSON schema")
            text = f"this node failed on the JSON schema: {error}"
            self._answer(peer, refusal(command, "internal", text))
        else:
            self._take(peer, command)

    async def close(self) -> None:
        """Drop what waits. A schema that is being compiled is waited for: some seconds at most."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._pool.shutdown(wait=True, cancel_futures=True)
