"""What a node needs of its device side once it is built: a runner, its memory, who it serves."""

from dataclasses import dataclass

from node.runner import Runner
from node.state import NodeIdentity


@dataclass(frozen=True, slots=True)
class Device:
    """`is_shared`: the pool lies in the memory that the composition root allocated for it.

    `description` is for the log: memory budget, chosen operations.
    """

    runner: Runner
    identity: NodeIdentity
    is_shared: bool
    description: str
