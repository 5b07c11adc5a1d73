"""Bearer keys of HTTP callers: `bearer.toml` in the keys folder has their digests, by name.

    [alice]
    sha256 = "<hex>"
    role = "client"

Clients' keys open gateways, operators' keys the dashboard. The keys themselves are stored nowhere.
"""

import hashlib
import hmac
import logging
import secrets
import time
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from tandem.keys import NAME, require_private, write_private

Role = Literal["client", "operator"]
ROLES: tuple[Role, ...] = ("client", "operator")
FILE = "bearer.toml"
KEY_PREFIX = "tdm-"
KEY_BYTES = 32
RELOAD_S = 1.0
SCHEME = b"bearer "
logger = logging.getLogger(__name__)


class BearerKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One caller's key."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    role: Role = "client"


def add_key(folder: Path, name: str, role: Role) -> str:
    """Make a key, store its digest, return the key: it cannot be had again.

    A name that has a key gets a new one, and the old one opens nothing any more. Raises ValueError
    with advice.
    """
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name for a key: up to 64 letters, digits and . _ -, no leading dot"
        )
    require_private(folder)
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()
    _write(folder, read_keys(folder) | {name: BearerKey(sha256=digest, role=role)})
    return key


def remove_key(folder: Path, name: str) -> None:
    """The key opens nothing any more. Raises ValueError where there is none."""
    keys = read_keys(folder)
    if name not in keys:
        raise ValueError(
            f"{folder / FILE} has no key of {name}: it has {', '.join(keys) or 'none'}"
        )
    del keys[name]
    _write(folder, keys)


def _write(folder: Path, keys: dict[str, BearerKey]) -> None:
    tables = [
        f'["{name}"]\nsha256 = "{key.sha256}"\nrole = "{key.role}"\n' for name, key in keys.items()
    ]
    write_private(folder / FILE, "\n".join(tables).encode())


def read_keys(folder: Path) -> dict[str, BearerKey]:
    """Keys by name; none without the file. Raises ValueError for a file that cannot be used."""
    path = folder / FILE
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), dict[str, BearerKey])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot use {path}: {error}") from None


class BearerKeys:
    """The keys in force. Looks for changes once per second; a bad file opens nothing new."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where the folder or its file cannot be used."""
        require_private(folder)
        self._folder = folder
        self._stamp: tuple[int, int, int] | None = None
        self._looked_at = time.monotonic()
        self._keys: dict[str, BearerKey] = {}
        self._load()

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, authorization: bytes | None) -> tuple[str, Role] | None:
        """Name and role of the key in an `Authorization: Bearer KEY` header; None for no key.

        The time it takes does not depend on how much of a key is right, nor on which one it is.
        """
        self._refresh()
        if authorization is None or authorization[: len(SCHEME)].lower() != SCHEME:
            return None
        digest = hashlib.sha256(authorization[len(SCHEME) :].strip(b" ")).hexdigest()
        found = None
        for name, key in self._keys.items():
            if hmac.compare_digest(digest, key.sha256):
                found = name, key.role
        return found

    def _refresh(self) -> None:
        now = time.monotonic()
        if now < self._looked_at + RELOAD_S:
            return
        self._looked_at = now
        try:
            self._load()
        except ValueError as error:
            logger.error("%s: the keys of before stay in force", error)

    def _load(self) -> None:
        stamp = self._stamp_now()
        if stamp != self._stamp:
            self._stamp = stamp
            self._keys = read_keys(self._folder)

    def _stamp_now(self) -> tuple[int, int, int] | None:
        try:
            status = (self._folder / FILE).stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
