"""JSON schemas that no node could keep are refused here, before the request costs anything."""

import asyncio
import hashlib
import logging
from concurrent.futures import Executor

from gateway.admission import Rejected
from tandem.json_schema import NoGrammarLibraryError, require_compilable

# What is allowed compiles within 0.3 s on a busy core (measured); this is for what was not thought
# of, which then occupies its thread for as long as it takes.
PATIENCE_S = 5.0
MAX_KNOWN = 1024
logger = logging.getLogger(__name__)


class GrammarCheck:
    """Compiles schemas in `threads`; remembers which ones went well."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._known: dict[bytes, None] = {}

    async def check(self, schema: str) -> None:
        """Raises Rejected for a schema that cannot be kept, or not by this installation."""
        digest = hashlib.blake2b(schema.encode(errors="surrogatepass"), digest_size=16).digest()
        if digest in self._known:
            return
        compiling = asyncio.get_running_loop().run_in_executor(
            self._threads, require_compilable, schema
        )
        try:
            await asyncio.wait_for(compiling, PATIENCE_S)
        except TimeoutError:
            logger.warning("a JSON schema took over %g s to compile and was refused", PATIENCE_S)
            text = f"the JSON schema takes over {PATIENCE_S:g} s to compile: simplify it"
            raise Rejected("invalid_request", text) from None
        except (ValueError, NoGrammarLibraryError) as error:
            raise Rejected("invalid_request", str(error)) from None
        self._known[digest] = None
        if len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]
