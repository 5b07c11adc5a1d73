"""Who may say what to a server with keys, and over which connection a peer is reached. Pure."""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tandem.codec import Decoder, ProtocolError
from tandem.keys import KINDS, Keyring, Owner

M = TypeVar("M")
MAX_ROUTES = 65_536
MAX_FREE_IDENTITY_BYTES = 160
# Kinds whose programs may be anyone's: their connections need not choose an identity.
FREE_KINDS = frozenset({"client", "operator"})


@dataclass(frozen=True, slots=True)
class _Route:
    """A connection, and the key that it was made with."""

    raw: bytes
    public_key: str
    owner: Owner


class Access(Generic[M]):
    """`allowed` is the union of messages that each kind of key may send.

    A connection's routing identity is `KIND/NAME/INCARNATION`, of its own key, and what follows a
    `~` is the connection's own. A peer is known without that; messages for it go to the connection
    that it spoke over last. A free identity of a client or operator is put under its key's name.
    """

    def __init__(self, keys: Keyring, allowed: Mapping[str, Any]) -> None:
        unknown = allowed.keys() - set(KINDS)
        if unknown:
            raise ValueError(f"no kinds of keys: {sorted(unknown)}")
        self._keys = keys
        self._decoders: dict[str, Decoder[M]] = {k: Decoder(u) for k, u in allowed.items()}
        self._routes: OrderedDict[bytes, _Route] = OrderedDict()
        self.num_refused = 0

    @property
    def kinds(self) -> Collection[str]:
        """Kinds of keys that may connect."""
        return self._decoders.keys()

    def admit(self, raw: bytes, public_key: str) -> tuple[bytes, Owner] | None:
        """The peer's identity and the owner of its key; None where the two do not fit.

        The key is looked up each time: one that was removed, or whose grace is over, ends here.
        """
        owner = self._keys.owner_of(public_key)
        identity = None if owner is None else self._identity(raw, owner)
        if owner is None or identity is None or owner[0] not in self._decoders:
            self.num_refused += 1
            return None
        known = self._routes.get(identity)
        if known is None or known.raw != raw or known.public_key != public_key:
            self._routes[identity] = _Route(raw, public_key, owner)
            if len(self._routes) > MAX_ROUTES:
                self._routes.popitem(last=False)
        self._routes.move_to_end(identity)
        return identity, owner

    def _identity(self, raw: bytes, owner: Owner) -> bytes | None:
        kind, name = owner
        own_prefix = f"{kind}/{name}/".encode()
        if raw.startswith(own_prefix):
            return raw.partition(b"~")[0]
        claims_a_kind = raw.partition(b"/")[0] in {known.encode() for known in KINDS}
        is_free = kind in FREE_KINDS and not claims_a_kind and len(raw) <= MAX_FREE_IDENTITY_BYTES
        return own_prefix + b"=" + raw if is_free else None

    def decoder(self, owner: Owner) -> Decoder[M]:
        """Reads what the owner may send."""
        return self._decoders[owner[0]]

    def check_name(self, identity: bytes, message: M) -> None:
        """Raise ProtocolError where a node or gateway speaks for another one.

        On links to a server `node_id` and `gateway_id` name the speaker.
        """
        kind, name, _ = identity.decode("latin-1").split("/", 2)
        claimed = getattr(message, f"{kind}_id", name)
        if claimed != name:
            self.num_refused += 1
            raise ProtocolError(f"{kind}/{name} cannot speak for {claimed}")

    def key_name(self, identity: bytes) -> str | None:
        """`client/alice`, for a peer that has spoken."""
        if identity not in self._routes:
            return None
        return "/".join(identity.decode("latin-1").split("/", 2)[:2])

    def route(self, identity: bytes) -> bytes | None:
        """The routing identity of the peer's newest connection; None where its key is over."""
        known = self._routes.get(identity)
        if known is None or self._keys.owner_of(known.public_key) != known.owner:
            return None
        return known.raw
