"""`tandem keys`: what it makes and says, and that commands take --keys."""

from pathlib import Path

import pytest

from tandem.cli import main
from tandem.keys import KeyFolder, Keyring


def keys(*arguments: object) -> int:
    return main(["keys", *(str(a) for a in arguments)])


def test_a_deployments_keys_from_the_first_to_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "keys"
    assert keys("init", folder) == 0
    assert f"tandem keys add node NAME {folder}" in capsys.readouterr().out
    assert keys("add", "node", "decode-0", folder) == 0
    assert f"Copy {folder}/public to every host" in capsys.readouterr().out
    first = Keyring(folder, "node").public_key
    assert keys("rotate", "node", "decode-0", folder, "--grace-s", "60") == 0
    assert "accepted for 60 s" in capsys.readouterr().out
    second = Keyring(folder, "node").public_key
    assert KeyFolder(folder).public("node", "decode-0").previous == first != second
    assert keys("list", folder) == 0
    listed = capsys.readouterr().out.splitlines()
    assert any("decode-0" in line and second[:8] in line and "here" in line for line in listed)
    assert any("for 60 s" in line or "for 59 s" in line for line in listed)
    assert not any(Keyring(folder, "node").secret_key[:8] in line for line in listed)
    public = KeyFolder(folder).public_path("node", "decode-0")
    public.write_text("nonsense\n")
    assert keys("list", folder) == 0
    listed = capsys.readouterr().out.splitlines()
    assert any("decode-0" in line and "unreadable" in line for line in listed)
    assert keys("remove", "node", "decode-0", folder) == 0
    capsys.readouterr()
    assert keys("list", folder) == 0
    assert "decode-0" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("add", "node", "../x"), "no name for a key"),
        (("add", "coordinator", "two"), "one coordinator"),
        (("add", "coordinator", "coordinator"), "tandem keys rotate"),
        (("rotate", "coordinator", "coordinator", "--grace-s", "inf"), "give 0 to"),
        (("rotate", "node", "none"), "no key of node/none"),
        (("remove", "client", "none"), "no key of client/none"),
    ],
)
def test_what_cannot_be_done_is_explained(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    folder = KeyFolder.create(tmp_path / "keys").folder
    assert keys(*arguments, folder) == 1
    error = capsys.readouterr().err
    assert error.startswith("tandem keys: ") and words in error


def test_a_folder_that_others_may_read_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = KeyFolder.create(tmp_path / "keys").folder
    folder.chmod(0o750)
    assert keys("list", folder) == 1
    assert f"chmod 700 {folder}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (("generate", "x", "--gateway", "tcp://127.0.0.1:9"), "client"),
        (("status", "--coordinator", "tcp://127.0.0.1:9"), "operator"),
        (("drain", "n", "--coordinator", "tcp://127.0.0.1:9"), "operator"),
    ],
)
def test_commands_say_which_key_they_miss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], kind: str
) -> None:
    folder = KeyFolder.create(tmp_path / "keys").folder
    assert main([*command, "--keys", str(folder)]) == 1
    assert f"tandem keys add {kind} NAME {folder}" in capsys.readouterr().err
