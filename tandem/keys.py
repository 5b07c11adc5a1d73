"""A folder of CURVE keys: who may take part in a deployment, by kind and name.

    DIR/            0700
      prefix.key    0600  32 random bytes: the page hashes' key, on every node and gateway
      secret/KIND/NAME.key  0600  a secret key, on the host of its owner only
      public/KIND/NAME.key        its public key, on every host

A public file has the current key on its first line. Its second line, if any, has the previous key
and until when (Unix seconds) it is still accepted, so that a rotation cuts nobody off.
`KeyFolder` writes; a process reads through a `Keyring`, which notices changes.
"""

import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils import z85

KINDS = ("coordinator", "gateway", "node", "client", "operator")
COORDINATOR = ("coordinator", "coordinator")  # the one name of its kind
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
GRACE_S = 3600.0
MAX_GRACE_S = 365 * 86_400.0
RELOAD_S = 1.0
KEY_CHARS = 40
PREFIX_KEY_BYTES = 32
MAX_FILE_BYTES = 1000
Owner = tuple[str, str]  # kind, name
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """What others know of one owner; `previous` is accepted until `previous_until` (Unix s)."""

    current: str
    previous: str | None = None
    previous_until: float = 0.0

    def accepted(self, unix_s: float) -> tuple[str, ...]:
        """The keys that this owner may use now, current first."""
        if self.previous is None or unix_s > self.previous_until:
            return (self.current,)
        return (self.current, self.previous)


def check_owner(kind: str, name: str) -> None:
    """Raise ValueError for what is no kind or no name of a key."""
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of key: one of {', '.join(KINDS)}")
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name for a key: up to 64 letters, digits and . _ -, no leading dot"
        )
    if kind == COORDINATOR[0] and name != COORDINATOR[1]:
        raise ValueError("a deployment has one coordinator, and its key is named coordinator")


class KeyFolder:
    """Makes, rotates and removes keys. Raises ValueError with advice for what it cannot do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path) -> "KeyFolder":
        """A new folder with a prefix key and the coordinator's key."""
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty: name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        made = cls(folder)
        _write(folder / "prefix.key", secrets.token_bytes(PREFIX_KEY_BYTES), 0o600)
        made.add(*COORDINATOR)
        return made

    @classmethod
    def complete(cls, folder: Path, owners: Iterable[Owner]) -> "KeyFolder":
        """The folder, made where it is missing, with a key of each owner."""
        keys = cls(folder) if folder.is_dir() and any(folder.iterdir()) else cls.create(folder)
        for kind, name in owners:
            if not keys.public_path(kind, name).exists():
                keys.add(kind, name)
        return keys

    def add(self, kind: str, name: str) -> None:
        """A new key pair."""
        check_owner(kind, name)
        require_private(self.folder)
        if self.public_path(kind, name).exists():
            raise ValueError(f"{kind}/{name} has a key: `tandem keys rotate` makes a new one")
        public, secret = zmq.curve_keypair()
        self._write_secret(kind, name, secret.decode())
        self._write_public(kind, name, PublicKey(public.decode()))

    def rotate(self, kind: str, name: str, *, grace_s: float = GRACE_S) -> None:
        """A new key pair; others accept the present key for `grace_s` seconds more."""
        check_owner(kind, name)
        require_private(self.folder)
        if not 0 <= grace_s <= MAX_GRACE_S:  # nor is NaN
            raise ValueError(f"a grace of {grace_s} s: give 0 to {MAX_GRACE_S:g}, a year")
        present = self.public(kind, name)
        public, secret = zmq.curve_keypair()
        until = time.time() + grace_s
        # Who dials reads the public key, and tries both while the owner still has its old secret.
        self._write_public(kind, name, PublicKey(public.decode(), present.current, until))
        self._write_secret(kind, name, secret.decode())

    def remove(self, kind: str, name: str) -> None:
        """Nobody accepts the key any more, whatever its file says."""
        check_owner(kind, name)
        try:
            self.public_path(kind, name).unlink()
        except FileNotFoundError:
            raise self._missing(kind, name) from None
        self.secret_path(kind, name).unlink(missing_ok=True)

    def public(self, kind: str, name: str) -> PublicKey:
        """What others know of an owner."""
        path = self.public_path(kind, name)
        if not path.is_file():
            raise self._missing(kind, name)
        return read_public(path)

    def _missing(self, kind: str, name: str) -> ValueError:
        return ValueError(f"{self.folder} has no key of {kind}/{name}: `tandem keys list` shows")

    def owners(self) -> Iterator[Owner]:
        """Kind and name of each public key, in order."""
        for kind in KINDS:
            for path in sorted((self.folder / "public" / kind).glob("*.key")):
                if NAME.fullmatch(path.stem):
                    yield kind, path.stem

    def public_path(self, kind: str, name: str) -> Path:
        """The file with an owner's public key."""
        return self.folder / "public" / kind / f"{name}.key"

    def secret_path(self, kind: str, name: str) -> Path:
        """The file with an owner's secret key."""
        return self.folder / "secret" / kind / f"{name}.key"

    def _write_public(self, kind: str, name: str, key: PublicKey) -> None:
        text = f"{key.current}\n"
        if key.previous is not None:
            text += f"{key.previous} {key.previous_until:.0f}\n"
        self.public_path(kind, name).parent.mkdir(parents=True, exist_ok=True)
        _write(self.public_path(kind, name), text.encode(), 0o644)

    def _write_secret(self, kind: str, name: str, secret: str) -> None:
        path = self.secret_path(kind, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in (path.parent.parent, path.parent):
            folder.chmod(0o700)
        _write(path, f"{secret}\n".encode(), 0o600)


class Keyring:
    """The keys of one process: its own secret, and the public keys of all others.

    `kind` and `name` say who this process is; where the folder has one secret key of the kind, the
    name may be left out. Raises ValueError with advice. Reads the folder again when it changed.
    """

    def __init__(self, folder: Path, kind: str, name: str | None = None) -> None:
        require_private(folder)
        self._folder = KeyFolder(folder)
        self.kind = kind
        self.name = name if name is not None else self._only_name(kind)
        check_owner(kind, self.name)
        self._signature: tuple[object, ...] = ()
        self._read_at = 0.0
        self._public: dict[Owner, PublicKey] = {}
        self._owners: dict[str, Owner] = {}
        self.secret_key = ""
        self.public_key = ""
        self._read(time.time())

    def _only_name(self, kind: str) -> str:
        found = sorted(p.stem for p in (self._folder.folder / "secret" / kind).glob("*.key"))
        if len(found) == 1:
            return found[0]
        folder = self._folder.folder
        if not found:
            raise ValueError(
                f"{folder} has no secret key of kind {kind}: `tandem keys add {kind} NAME {folder}`"
            )
        raise ValueError(f"{folder} has several keys of kind {kind}: say which of {found}")

    @property
    def folder(self) -> Path:
        """Where the keys are."""
        return self._folder.folder

    @property
    def own_name(self) -> str:
        """`node/prefill-0`."""
        return f"{self.kind}/{self.name}"

    def owner_of(self, public_key: str) -> Owner | None:
        """Whose key it is; None for one that is not, or no longer, accepted."""
        return self._owners.get(public_key)

    def keys_of(self, kind: str, name: str) -> tuple[str, ...]:
        """The public keys of an owner, current first; none where the folder does not have it."""
        key = self._public.get((kind, name))
        return () if key is None else key.accepted(time.time())

    def prefix_key(self) -> bytes:
        """The deployment's key of page hashes."""
        return read_prefix_key(str(self.folder))

    def refresh(self) -> str | None:
        """`reload`, at most once per second."""
        return self.reload() if time.monotonic() - self._read_at >= RELOAD_S else None

    def reload(self) -> str | None:
        """Look for changes; an error text where they cannot be read.

        Then this process keeps its secret; whom it accepts follows the folder all the same.
        """
        try:
            self._read(time.time())
        except (OSError, ValueError) as error:
            self._accept(time.time())
            return str(error)
        return None

    def _read(self, unix_s: float) -> None:
        self._read_at = time.monotonic()
        signature = tuple(self._stamps())
        if signature != self._signature:
            self._public = dict(self._read_public_files())
            secret = self._read_secret()
            self.secret_key = secret
            self.public_key = zmq.curve_public(secret.encode()).decode()
            self._signature = signature
        self._accept(unix_s)

    def _read_public_files(self) -> Iterator[tuple[Owner, PublicKey]]:
        """Those that can be read. One that cannot must keep nobody else's key in or out."""
        for owner in self._folder.owners():
            try:
                yield owner, read_public(self._folder.public_path(*owner))
            except ValueError as error:
                logger.error("nobody gets in as %s/%s: %s", *owner, error)

    def _accept(self, unix_s: float) -> None:
        self._owners = {
            key: owner for owner, public in self._public.items() for key in public.accepted(unix_s)
        }

    def _stamps(self) -> Iterator[object]:
        paths = [self._folder.public_path(*owner) for owner in self._folder.owners()]
        for path in (*paths, self._folder.secret_path(self.kind, self.name)):
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            yield (str(path), found.st_mtime_ns, found.st_ino, found.st_size)

    def _read_secret(self) -> str:
        path = self._folder.secret_path(self.kind, self.name)
        if not path.is_file():
            raise ValueError(
                f"there is no secret key {path}: make it where the keys are managed, with `tandem "
                f"keys add {self.kind} {self.name} {self.folder}`, and copy it to this host"
            )
        _require_mode(path, f"chmod 600 {path}")
        return _checked(_read_text(path).strip(), path)


def read_prefix_key(folder: str | None) -> bytes:
    """The deployment's key of page hashes; empty without a keys folder."""
    if folder is None:
        return b""
    path = Path(folder) / "prefix.key"
    _require_mode(path, f"chmod 600 {path}")
    key = path.read_bytes()
    if len(key) != PREFIX_KEY_BYTES:
        raise ValueError(f"{path} has {len(key)} bytes, not {PREFIX_KEY_BYTES}: copy it again")
    return key


def read_public(path: Path) -> PublicKey:
    """Read a public file. Raises ValueError for one that is none, or is gone."""
    match [line.split() for line in _read_text(path).splitlines()]:
        case [[current]]:
            return PublicKey(_checked(current, path))
        case [[current], [previous, until]] if until.isdecimal():
            return PublicKey(_checked(current, path), _checked(previous, path), float(until))
    raise ValueError(f"{path} is no public key: copy it again")


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the key {path}: {error}") from None


def _checked(key: str, path: Path) -> str:
    try:
        if len(key) == KEY_CHARS and len(z85.decode(key)) == KEY_CHARS * 4 // 5:
            return key
    except (KeyError, ValueError):
        pass
    raise ValueError(f"{path} is no key: copy it again")


def require_private(folder: Path) -> None:
    """Raise ValueError where the folder is missing, or others may look into it."""
    if not folder.is_dir():
        raise ValueError(f"there is no keys folder {folder}: `tandem keys init {folder}` makes one")
    _require_mode(folder, f"chmod 700 {folder}")


def _require_mode(path: Path, advice: str) -> None:
    try:
        found = path.stat()
    except FileNotFoundError:
        raise ValueError(f"there is no {path}: copy it from where the keys are managed") from None
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise ValueError(f"{path} may be read by others (mode {mode:04o}): {advice}")
    if found.st_uid not in (os.geteuid(), 0):
        raise ValueError(f"{path} belongs to another user: copy it as the user that runs Tandem")


def write_private(path: Path, content: bytes) -> None:
    """Replace a file that only its owner may read."""
    _write(path, content, 0o600)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file as a whole: readers see the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
    os.replace(temporary, path)
