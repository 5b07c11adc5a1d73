"""Bearer keys: digests in a file, found by name, taken up and dropped while processes run."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from tandem import bearer
from tandem.bearer import FILE, BearerKeys, add_key, read_keys, remove_key
from tandem.cli import main
from tandem.keys import KeyFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return KeyFolder.create(tmp_path / "keys").folder


def header(key: str) -> bytes:
    return f"Bearer {key}".encode("latin-1")


def looking(keys: BearerKeys) -> BearerKeys:
    """The keys a second later."""
    keys._looked_at -= 2 * bearer.RELOAD_S
    return keys


def test_a_key_is_told_once_and_its_digest_kept(folder: Path) -> None:
    key = add_key(folder, "alice.1", "client")
    path = folder / FILE
    assert key not in path.read_text()
    assert read_keys(folder)["alice.1"].sha256 == hashlib.sha256(key.encode()).hexdigest()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(key) > 40
    assert BearerKeys(folder).find(header(key)) == ("alice.1", "client")


def test_what_is_no_key_finds_nobody(folder: Path) -> None:
    key = add_key(folder, "alice", "client")
    keys = BearerKeys(folder)
    wrong = (
        None, b"", b"Bearer", b"Bearer ", header(key)[:-1], header(key + "x"), key.encode(),
        header(key.upper()), b"Basic " + key.encode(), b"Bearer \xff\xfe", header(f" x {key}"),
    )  # fmt: skip
    for text in wrong:
        assert keys.find(text) is None, text
    assert keys.find(b"bEaReR " + key.encode()) == ("alice", "client")


def test_keys_are_taken_up_and_dropped_while_a_process_runs(folder: Path) -> None:
    keys = BearerKeys(folder)
    assert len(keys) == 0
    key = add_key(folder, "olga", "operator")
    assert keys.find(header(key)) is None, "it looks once per second"
    assert looking(keys).find(header(key)) == ("olga", "operator")
    newer = add_key(folder, "olga", "operator")
    assert looking(keys).find(header(key)) is None, "a name has one key"
    assert keys.find(header(newer)) is not None
    remove_key(folder, "olga")
    assert looking(keys).find(header(newer)) is None
    add_key(folder, "eve", "client")
    (folder / FILE).unlink()
    assert len(looking(keys)) == 0
    with pytest.raises(ValueError, match="no key of olga"):
        remove_key(folder, "olga")


def test_a_damaged_file_opens_nothing_new(folder: Path, caplog) -> None:
    key = add_key(folder, "alice", "client")
    keys = BearerKeys(folder)
    (folder / FILE).write_text("[alice]\nsha256 = 'x'\n")
    assert looking(keys).find(header(key)) == ("alice", "client")
    assert "stay in force" in caplog.text
    with pytest.raises(ValueError, match=FILE):
        BearerKeys(folder)
    (folder / FILE).write_text('[alice]\nsha256 = "' + "0" * 64 + '"\nrole = "root"\n')
    with pytest.raises(ValueError, match="role"):
        BearerKeys(folder)


def test_names_and_modes_are_checked(folder: Path) -> None:
    for name in ("", "a b", "../x", 'a"b', "x" * 65, ".hidden"):
        with pytest.raises(ValueError, match="no name for a key"):
            add_key(folder, name, "client")
    os.chmod(folder, 0o755)
    with pytest.raises(ValueError, match="chmod 700"):
        BearerKeys(folder)


def test_the_command_prints_a_key_that_works(folder: Path, capsys) -> None:
    assert main(["keys", "bearer", "olga", "--role", "operator", "--keys", str(folder)]) == 0
    key = capsys.readouterr().out.strip()
    assert BearerKeys(folder).find(header(key)) == ("olga", "operator")
    assert main(["keys", "list", str(folder)]) == 0
    assert "bearer operator" in capsys.readouterr().out
    assert main(["keys", "bearer", "olga", "--remove", "--keys", str(folder)]) == 0
    assert BearerKeys(folder).find(header(key)) is None
