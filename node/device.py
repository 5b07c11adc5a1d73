"""What a node needs of its device side once it is built: a runner, its memory, who it serves."""

from dataclasses import dataclass
from typing import Protocol

from node.runner import Runner
from node.state import NodeIdentity


class Schemas(Protocol):
    """JSON schemas that answers are to keep, compiled beside the steps."""

    def is_prepared(self, schema: str) -> bool:
        """Whether requests with this schema need not wait."""

    def prepare(self, schema: str) -> None:
        """Compile it, in any thread.

        Raises ValueError for one that cannot be kept, tandem.json_schema.NoGrammarLibraryError.
        """


@dataclass(frozen=True, slots=True)
class Device:
    """`is_shared`: the pool lies in the memory that the composition root allocated for it.

    `description` is for the log: memory budget, chosen operations. `schemas` None: tokens do not
    depend on them (the fake device's are hashes).
    """

    runner: Runner
    identity: NodeIdentity
    is_shared: bool
    description: str
    schemas: Schemas | None = None
