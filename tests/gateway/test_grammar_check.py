"""Schemas that cannot be kept are refused at the gateway, with the reason and what to do."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import grammar_check
from gateway.admission import Rejected
from gateway.grammar_check import GrammarCheck
from gateway.tokenize import Tokenization
from tandem import json_schema
from tandem.frames import Blob
from tandem.messages.client import Submit
from tandem.sampling import SamplingParams

GOOD = '{"type": "object", "properties": {"a": {"type": "integer"}}}'


def check(*schemas: str) -> None:
    checker = GrammarCheck()

    async def run() -> None:
        for schema in schemas:
            await checker.check(schema)

    asyncio.run(run())


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What children would be given."""
    given: list[bytes] = []

    async def run_child(text: bytes) -> tuple[int, str]:
        given.append(text)
        await asyncio.sleep(0)
        return 0, ""

    monkeypatch.setattr(grammar_check, "run_child", run_child)
    return given


def test_a_good_schema_is_compiled_once_by_one_child(compiled: list[bytes]) -> None:
    check(GOOD, GOOD, "{}", GOOD)
    assert compiled == [GOOD.encode(), b"{}"]
    compiled.clear()
    checker = GrammarCheck()

    async def run() -> None:
        await asyncio.gather(*(checker.check(GOOD) for _ in range(50)))

    asyncio.run(run())
    assert compiled == [GOOD.encode()]


def test_what_is_remembered_is_bounded(
    monkeypatch: pytest.MonkeyPatch, compiled: list[bytes]
) -> None:
    monkeypatch.setattr(grammar_check, "MAX_KNOWN", 2)
    a, b, c = ('{"type": "null"}', '{"type": "string"}', '{"type": "integer"}')
    check(a, b, c, b, a)
    assert compiled == [each.encode() for each in (a, b, c, a)]


def test_who_waits_no_more_does_not_end_the_others_child(compiled: list[bytes]) -> None:
    checker = GrammarCheck()

    async def run() -> None:
        first = asyncio.create_task(checker.check(GOOD))
        second = asyncio.create_task(checker.check(GOOD))
        await asyncio.sleep(0)
        first.cancel()
        await second

    asyncio.run(run())
    assert compiled == [GOOD.encode()]


def test_tokenising_begins_with_the_schema(tokenizer) -> None:
    tokenization = Tokenization(tokenizer, num_threads=2)

    def ids_of(schema: str) -> int:
        params = SamplingParams(json_schema=schema)
        submit = Submit(label="x", prompt=Blob(b"def f():"), params=params)
        return len(asyncio.run(tokenization.prompt_ids(submit)))

    try:
        assert ids_of(GOOD) > 0
        with pytest.raises(Rejected, match="Unimplemented") as caught:
            ids_of('{"type": "string", "not": {}}')
        assert caught.value.code == "invalid_request"
        with pytest.raises(Rejected, match="not JSON"):
            ids_of("{")
    finally:
        tokenization.close()


def test_without_the_library_the_refusal_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child of a Python that has none: the virtual environment's is looked for in vain."""
    source = Path(json_schema.__file__).read_text().replace('"llguidance"', '"no_such_library"')
    (tmp_path / "json_schema.py").write_text(source)
    monkeypatch.setattr(json_schema, "__file__", str(tmp_path / "json_schema.py"))
    with pytest.raises(Rejected, match=r"pip install 'tandem-serve\[structured\]'") as caught:
        check(GOOD)
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os; os.abort()", "exit status -6"),
        ("import time; time.sleep(60)", "over 0.2 s"),
    ],
)
def test_a_schema_that_kills_its_compiler_kills_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, words: str
) -> None:
    (tmp_path / "child.py").write_text(program)
    monkeypatch.setattr(json_schema, "__file__", str(tmp_path / "child.py"))
    if "sleep" in program:
        monkeypatch.setattr(grammar_check, "PATIENCE_S", 0.2)
    with pytest.raises(Rejected, match=words) as caught:
        check(GOOD)
    assert caught.value.code == "invalid_request"
    assert "simplify it" in str(caught.value)


def test_the_child_is_bounded_in_memory() -> None:
    """Random schemas asked for gigabytes before the checks knew them; others may be unknown."""
    program = (
        "import json_schema; json_schema.require_compilable = lambda schema: bytearray(4 << 30); "
        "json_schema.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=b"{}",
        cwd=Path(json_schema.__file__).parent,
        capture_output=True,
        timeout=25,
    )
    assert done.returncode == 1
    assert b"MemoryError" in done.stderr
