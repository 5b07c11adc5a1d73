"""What a node's core asks of its shell, beside the bulk requests that guests pass through."""

from dataclasses import dataclass

import msgspec

from tandem.messages.common import NodeRef


@dataclass(frozen=True, slots=True)
class Reply:
    """Send to a peer that dialled this node, by its routing identity."""

    peer: bytes
    message: msgspec.Struct


@dataclass(frozen=True, slots=True)
class SendToNode:
    """Send on this node's own link to another node's control socket."""

    node: NodeRef
    message: msgspec.Struct


@dataclass(frozen=True, slots=True)
class NodeNotice:
    """For the operator: a line of the log."""

    text: str


@dataclass(frozen=True, slots=True)
class CacheChanged:
    """Routing prefixes that entered and left the prefix cache; a snapshot has all in `added`."""

    is_snapshot: bool
    added: tuple[bytes, ...]
    removed: tuple[bytes, ...]


NodeAction = object
"""One of the above, or a bulk request that the composition root knows to execute."""
