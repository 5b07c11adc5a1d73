"""Config from one definition: precedence, types, the file, errors that name what to change."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from tandem.checks import Check
from tandem.config import Help, fields_of, load_config
from tandem.foreign_flags import translate


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLike:
    """Runs a node.

    Not part of the help.
    """

    model: Annotated[str, Help("model folder or name")]
    host: Annotated[str, Help("address to listen on")] = "127.0.0.1"
    num_pages: Annotated[int | None, Help("KV pages, 100 % of the pool")] = None
    share: Annotated[float, Help("share of memory")] = 0.5
    eager: Annotated[bool, Help("no graphs")] = False
    dtype: Annotated[Literal["float32", "bfloat16"], Help("arithmetic")] = "float32"
    peers: Annotated[tuple[str, ...], Help("addresses of peers")] = ()

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}, but must be above 0 and at most 1")


def load(*argv: str, env: dict[str, str] | None = None) -> NodeLike:
    return load_config(NodeLike, argv, prog="node", section="node", env=env or {})


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The error text of a load that must exit with status 2."""

    def attempt(*argv: str, env: dict[str, str] | None = None) -> str:
        with pytest.raises(SystemExit) as caught:
            load(*argv, env=env)
        assert caught.value.code == 2
        return capsys.readouterr().err

    return attempt


def test_defaults_where_nothing_is_given() -> None:
    assert load("--model", "m") == NodeLike(model="m")


def test_flags_of_every_type() -> None:
    config = load(
        "--model=m", "--num-pages=7", "--share=0.25", "--eager", "--dtype", "bfloat16",
        "--peers", "a", "--peers", "b,c",
    )  # fmt: skip
    assert config == NodeLike(
        model="m", num_pages=7, share=0.25, eager=True, dtype="bfloat16", peers=("a", "b,c")
    )


def test_variables_of_every_type() -> None:
    env = {
        "TANDEM_MODEL": "m",
        "TANDEM_NUM_PAGES": "9",
        "TANDEM_SHARE": "1",
        "TANDEM_EAGER": "true",
        "TANDEM_PEERS": "a, b",
        "TANDEM_HOST": "",
    }
    expected = NodeLike(model="m", num_pages=9, share=1.0, eager=True, peers=("a", "b"))
    assert load(env=env) == expected


def test_flag_wins_over_variable_over_table_over_common_over_default(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text(
        '[common]\nmodel = "common"\nhost = "common"\nnum_pages = 1\nshare = 0.1\n'
        "port = 1\n"  # another process's key
        '[node]\nhost = "table"\nnum_pages = 2\nshare = 0.2\npeers = ["x"]\n'
    )
    config = load(
        "--config",
        str(file),
        "--share",
        "0.4",
        env={"TANDEM_SHARE": "0.3", "TANDEM_NUM_PAGES": "3"},
    )
    assert config == NodeLike(model="common", host="table", num_pages=3, share=0.4, peers=("x",))


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text('[node]\nmodel = "m"\neager = true\n')
    config = load("--no-eager", env={"TANDEM_CONFIG": str(file)})
    assert config.model == "m" and config.eager is False


def test_none_unsets_an_optional_value() -> None:
    assert load("--model=m", "--num-pages=none", env={"TANDEM_NUM_PAGES": "3"}).num_pages is None


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--num-pages", "many"], "--num-pages is 'many', but must be a whole number, or none"),
        (["--num-pages", "1.5"], "--num-pages is '1.5'"),
        (["--share", "nan"], "--share is 'nan', but must be a number"),
        (["--dtype", "int8"], "must be one of float32, bfloat16"),
        (["--share", "2"], "share is 2.0, but must be above 0"),
        (["--num-page", "2"], "unrecognized arguments: --num-page"),
    ],
)
def test_bad_flags(refused: Callable[..., str], argv: list[str], words: str) -> None:
    assert words in refused("--model=m", *argv)


def test_a_required_field_is_asked_for(refused: Callable[..., str]) -> None:
    assert "--model is required: model folder or name" in refused()


def test_a_bad_variable_is_named(refused: Callable[..., str]) -> None:
    error = refused("--model=m", env={"TANDEM_EAGER": "maybe"})
    assert "TANDEM_EAGER is 'maybe', but must be true or false: no graphs" in error


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[node]\nnum_pages = "3"\n', "[node] num_pages is '3', but must be a whole number"),
        ("[node]\neager = 1\n", "[node] eager is 1, but must be true or false"),
        ("[common]\nshare = inf\n", "[common] share is inf, but must be a number"),
        ("[node]\npeers = 'x'\n", "[node] peers is 'x', but must be a list of texts"),
        ("[node]\nnum_page = 3\n", "unknown key 'num_page': did you mean num_pages?"),
        ("[node]\nqqqq = 3\n", "unknown key 'qqqq': known are model, host"),
        ("num_pages = 3\n", "key 'num_pages' is in no table: write it under [node] or [common]"),
        ("[node\n", "is no TOML file"),
    ],
)
def test_bad_files(refused: Callable[..., str], tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    error = refused("--model=m", "--config", str(file))
    assert str(file) in error
    assert words in error


def test_a_missing_file_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    error = refused("--config", str(tmp_path / "none.toml"))
    assert "cannot read the config file" in error and "none.toml" in error


def test_help_lists_flag_variable_default_and_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load("--help")
    assert caught.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "--num-pages N KV pages, 100 % of the pool [TANDEM_NUM_PAGES; default none]" in words
    assert "--eager, --no-eager no graphs [TANDEM_EAGER; default false]" in words
    assert "[TANDEM_MODEL; required]" in words
    assert "Runs a node." in words and "Not part of the help." not in words


def test_a_field_without_help_is_a_mistake_of_ours() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Silent:
        port: int = 1

    with pytest.raises(TypeError, match=r"Silent\.port has no Help"):
        fields_of(Silent)


def test_dumped_settings_name_their_source_and_can_be_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "t.toml"
    file.write_text("[node]\nshare = 0.25\n")
    flags = ["--model", 'a "b"\n\x7fü', "--peers", "x", "--peers", "y", "--config", str(file)]
    env = {"TANDEM_EAGER": "true"}
    with pytest.raises(SystemExit) as caught:
        load(*flags, "--dump-config", env=env)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "eager = true  # TANDEM_EAGER" in text and "# num_pages is not set  # default" in text
    assert f"share = 0.25  # {file}: [node] share" in text and "  # --model" in text
    dumped = tmp_path / "dumped.toml"
    dumped.write_text(text)
    assert load("--config", str(dumped)) == load(*flags, env=env)


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_checks_are_shown_and_nothing_starts(
    status: Any, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(config: NodeLike) -> list[Check]:
        return [Check("model", status, f"{config.model} is strange", "look at it")]

    with pytest.raises(SystemExit) as caught:
        load_config(
            NodeLike, ["--model=m", "--check"], prog="node", section="node", env={}, check=check
        )
    assert caught.value.code == code
    text = capsys.readouterr().out
    assert text.startswith(f"{status:<5} model  m is strange; look at it\n")


def test_names_that_users_of_vllm_know() -> None:
    assert translate(
        ["--block-size", "32", "--num-gpu-blocks-override=9", "--max_model_len=7", "-tp", "1"]
    ) == ["--page-size", "32", "--num-pages=9", "--max-model-len=7"]
    assert translate(["--tensor-parallel-size=1", "--enable-prefix-caching", "x_y"]) == ["x_y"]
    assert translate(["--chat-template", "f"], own=["--chat-template"]) == ["--chat-template", "f"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-tp", "2"], "-tp 2: only 1 is possible; a node is one process on one device"),
        (["--api-key", "x"], "--api-key does not exist here: keys are kept as digests"),
        (["--gpu_memory_utilization=0.9"], "--memory-share is the share of what is left"),
        (["--kv-cache-dtype", "fp8"], "KV pages have the dtype of the weights"),
    ],
)
def test_flags_that_mean_something_else_get_advice(
    refused: Callable[..., str], argv: list[str], words: str
) -> None:
    assert words in " ".join(refused("--model=m", *argv).split())
