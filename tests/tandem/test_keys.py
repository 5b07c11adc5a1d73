"""A folder of keys: what it makes, whom it lets in and for how long, what it refuses to read."""

import time
from pathlib import Path

import pytest
import zmq

from tandem.keys import KeyFolder, Keyring, read_prefix_key, read_public


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A keys folder with one owner of each kind."""
    keys = KeyFolder.create(tmp_path / "keys")
    for kind, name in (("node", "a"), ("gateway", "g"), ("client", "alice"), ("operator", "o")):
        keys.add(kind, name)
    return keys.folder


def refreshed(keyring: Keyring) -> Keyring:
    """Read again although a second is not over."""
    assert keyring.reload() is None
    return keyring


def test_a_new_folder_is_private(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {
        str(path.relative_to(folder)): path.stat().st_mode & 0o777
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert modes["prefix.key"] == modes["secret/node/a.key"] == 0o600
    assert modes["public/node/a.key"] == 0o644
    assert (folder / "secret").stat().st_mode & 0o777 == 0o700
    assert len(list(KeyFolder(folder).owners())) == 5
    assert not list(folder.rglob(".*"))


def test_a_keyring_has_its_own_secret_and_everybodys_public_key(folder: Path) -> None:
    node = Keyring(folder, "node", "a")
    client = Keyring(folder, "client")  # the only one
    assert client.own_name == "client/alice" and node.own_name == "node/a"
    assert zmq.curve_public(node.secret_key.encode()).decode() == node.public_key
    assert client.keys_of("node", "a") == (node.public_key,)
    assert node.owner_of(client.public_key) == ("client", "alice")
    assert node.owner_of("x" * 40) is None and node.keys_of("node", "b") == ()
    assert len(read_prefix_key(str(folder))) == 32 and read_prefix_key(None) == b""


def test_rotation_keeps_the_previous_key_for_its_grace(folder: Path) -> None:
    keys, others = KeyFolder(folder), Keyring(folder, "gateway")
    first = others.keys_of("node", "a")[0]
    keys.rotate("node", "a", grace_s=2.0)
    second, previous = refreshed(others).keys_of("node", "a")
    assert previous == first != second
    assert others.owner_of(first) == others.owner_of(second) == ("node", "a")
    assert Keyring(folder, "node", "a").public_key == second

    public = keys.public("node", "a")
    assert public.accepted(time.time() + 3) == (second,)
    keys.rotate("node", "a", grace_s=100)
    third = refreshed(others).keys_of("node", "a")[0]
    assert others.keys_of("node", "a") == (third, second) and others.owner_of(first) is None
    keys.rotate("node", "a", grace_s=0)
    late = KeyFolder(folder).public("node", "a").accepted(time.time() + 1.1)
    assert len(late) == 1


def test_a_removed_key_is_nobodys(folder: Path) -> None:
    others = Keyring(folder, "gateway")
    key = others.keys_of("client", "alice")[0]
    KeyFolder(folder).remove("client", "alice")
    assert refreshed(others).owner_of(key) is None
    with pytest.raises(ValueError, match="tandem keys add client NAME"):
        Keyring(folder, "client")


def test_a_keyring_looks_at_most_once_per_second(folder: Path) -> None:
    others = Keyring(folder, "gateway")
    KeyFolder(folder).remove("client", "alice")
    assert others.refresh() is None
    assert others.keys_of("client", "alice")
    assert not refreshed(others).keys_of("client", "alice")


def test_a_file_that_cannot_be_read_keeps_no_other_key_in_or_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys, others = KeyFolder(folder), Keyring(folder, "gateway")
    damaged, removed = others.keys_of("node", "a")[0], others.keys_of("client", "alice")[0]
    path = folder / "public" / "node" / "a.key"
    path.write_text(f"{damaged}\n{damaged} inf\n")
    keys.remove("client", "alice")
    keys.add("client", "bob")
    for ring in (refreshed(others), Keyring(folder, "gateway")):
        assert ring.owner_of(removed) is None and ring.owner_of(damaged) is None
        assert len(ring.keys_of("client", "bob")) == 1
    told = [r for r in caplog.records if r.levelname == "ERROR"]
    assert told and all(f"{path} is no public key" in r.getMessage() for r in told)
    keys.remove("node", "a")  # what it says does not matter
    assert not path.exists()


def test_a_damaged_secret_keeps_no_removed_key_in(folder: Path) -> None:
    others = Keyring(folder, "gateway")
    secret, removed = others.secret_key, others.keys_of("client", "alice")[0]
    (folder / "secret" / "gateway" / "g.key").write_text("nonsense\n")
    KeyFolder(folder).remove("client", "alice")
    assert "is no key: copy it again" in (others.reload() or "")
    assert others.owner_of(removed) is None and others.secret_key == secret


@pytest.mark.parametrize("grace_s", [float("inf"), float("nan"), -1.0, 1e300])
def test_a_grace_that_never_ends_is_refused(folder: Path, grace_s: float) -> None:
    keys = KeyFolder(folder)
    before = keys.public("client", "alice")
    with pytest.raises(ValueError, match="give 0 to"):
        keys.rotate("client", "alice", grace_s=grace_s)
    assert keys.public("client", "alice") == before


@pytest.mark.parametrize(
    "text",
    [
        "", "\n", "x" * 39, "x" * 41, "'" * 40, "x" * 40 + "\n" + "x" * 40,
        "x" * 40 + "\n" + "x" * 40 + " nan", "x" * 40 + "\nshort 1", "é" * 40, "x" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_public_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.key"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"copy it again|cannot read the key"):
        read_public(path)


def test_loose_modes_are_refused_with_the_command_that_mends_them(folder: Path) -> None:
    for path, mode, right in (
        (folder, 0o755, 0o700),
        (folder / "secret" / "node" / "a.key", 0o640, 0o600),
    ):
        path.chmod(mode)
        with pytest.raises(ValueError, match=f"chmod {right:o} {path}"):
            Keyring(folder, "node", "a")
        path.chmod(right)
    prefix = folder / "prefix.key"
    prefix.chmod(0o644)
    with pytest.raises(ValueError, match=f"chmod 600 {prefix}"):
        read_prefix_key(str(folder))
    prefix.chmod(0o600)
    prefix.write_bytes(b"short")
    with pytest.raises(ValueError, match="has 5 bytes, not 32"):
        read_prefix_key(str(folder))


def test_what_is_missing_is_said_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tandem keys init"):
        Keyring(tmp_path / "none", "node", "a")
    with pytest.raises(ValueError, match="tandem keys add node b"):
        Keyring(folder, "node", "b")
    KeyFolder(folder).add("node", "b")
    with pytest.raises(ValueError, match=r"say which of \['a', 'b'\]"):
        Keyring(folder, "node")
    (folder / "prefix.key").unlink()
    with pytest.raises(ValueError, match="copy it from"):
        read_prefix_key(str(folder))


def test_a_folder_refuses_what_would_harm(folder: Path) -> None:
    keys = KeyFolder(folder)
    with pytest.raises(ValueError, match="not empty"):
        KeyFolder.create(folder)
    with pytest.raises(ValueError, match="has a key"):
        keys.add("node", "a")
    with pytest.raises(ValueError, match="no kind of key"):
        keys.add("admin", "a")
    with pytest.raises(ValueError, match="one coordinator"):
        keys.add("coordinator", "second")
    for name in ("", "../x", ".hidden", "a/b", "a b", "x" * 65, "a\n"):
        with pytest.raises(ValueError, match="no name for a key"):
            keys.add("node", name)
    for method in (keys.rotate, keys.remove):
        with pytest.raises(ValueError, match="no key of node/none"):
            method("node", "none")


def test_a_host_needs_its_own_secret_and_the_public_part(folder: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    (host / "secret" / "node").mkdir(parents=True)
    host.chmod(0o700)
    (folder / "public").rename(host / "public")
    (folder / "secret" / "node" / "a.key").rename(host / "secret" / "node" / "a.key")
    keyring = Keyring(host, "node")
    assert keyring.keys_of("coordinator", "coordinator") and keyring.name == "a"
    with pytest.raises(ValueError, match="no secret key"):
        Keyring(host, "gateway", "g")
