"""JSON schemas that no node could keep are refused here, before the request costs anything.

A schema is compiled in a process of its own before anybody relies on it: of random ones, small and
valid, some overflowed the compiler's stack, asked for gigabytes or ran for minutes, and each took
its process with it. What the child survived is compiled again by the nodes, in the same way.
"""

import asyncio
import hashlib
import logging
import os
import sys

from gateway.admission import Rejected
from tandem import json_schema

PATIENCE_S = 10.0
MAX_KNOWN = 1024
NUM_AT_ONCE = 2
logger = logging.getLogger(__name__)


class GrammarCheck:
    """Lives on one event loop. Remembers which schemas went well; equal ones share a child."""

    def __init__(self) -> None:
        self._known: dict[bytes, None] = {}
        self._running: dict[bytes, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(NUM_AT_ONCE)

    async def check(self, schema: str) -> None:
        """Raises Rejected for a schema that cannot be kept, or not by this installation."""
        try:
            text = schema.encode()
            json_schema.check_schema(schema)
        except ValueError as error:
            raise Rejected("invalid_request", str(error)) from None
        digest = hashlib.blake2b(text, digest_size=16).digest()
        if digest in self._known:
            return
        task = self._running.get(digest)
        if task is None:
            task = self._running[digest] = asyncio.create_task(self._compile(text))
            task.add_done_callback(lambda done: self._compiled(digest, done))
        await asyncio.shield(task)

    def _compiled(self, digest: bytes, task: asyncio.Task[None]) -> None:
        del self._running[digest]
        if not task.cancelled() and task.exception() is None:
            self._known[digest] = None
            if len(self._known) > MAX_KNOWN:
                del self._known[next(iter(self._known))]

    async def _compile(self, text: bytes) -> None:
        async with self._turns:
            status, reason = await run_child(text)
        if status in (json_schema.REFUSED, json_schema.NOT_INSTALLED):
            raise Rejected("invalid_request", reason)
        if status != 0:
            logger.warning("a JSON schema was refused, its compiler ended with %s", status)
            how = f"over {PATIENCE_S:g} s" if status is None else f"exit status {status}"
            raise Rejected(
                "invalid_request",
                f"the JSON schema is more than its compiler can bear ({how}): simplify it",
            )


async def run_child(text: bytes) -> tuple[int | None, str]:
    """Exit status and output of the compiling child; None: it took too long and was killed."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        json_schema.__file__,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "RAYON_NUM_THREADS": "1"},
    )
    try:
        output, _ = await asyncio.wait_for(child.communicate(text), PATIENCE_S)
    except TimeoutError:
        return None, ""
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return child.returncode, output.decode(errors="replace")
