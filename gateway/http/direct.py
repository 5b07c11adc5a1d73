"""Writing parts of a streamed answer at once, from whatever learns of them, without its task.

To wake a task and go down the layers of ASGI took a fifth of what a token costs. So a connection
offers itself in its calls' scope; whoever takes the offer must know that the task waits for
nothing but the next part.
"""

from typing import Protocol, cast

from starlette.types import Scope

EXTENSION, BODY = "tandem.direct", "body"


class DirectBody(Protocol):
    """One answer's body, after its head and first part have gone."""

    @property
    def is_ready(self) -> bool:
        """Whether a part may be written now: the caller is there and reads."""

    def write(self, part: bytes) -> None:
        """Send a part that is not empty. Only where it is ready."""


def direct_body(scope: Scope) -> DirectBody | None:
    """What this call's connection offers; None of one that is no socket's."""
    return cast("DirectBody | None", scope.get("extensions", {}).get(EXTENSION, {}).get(BODY))
