"""`tandem chat`: turns, commands, pipes, Ctrl-C."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tandem.cli import main
from tandem.cli_chat import Conversation
from tandem.messages.client import CancelRequest, Submit
from tandem.sampling import SamplingParams

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets what comes through the pipe."""
    ends: list[Any] = []

    def type_in(text: str) -> None:
        read, write = os.pipe()
        os.write(write, text.encode())
        os.close(write)
        ends.append(os.fdopen(read))
        monkeypatch.setattr(sys, "stdin", ends[-1])

    yield type_in
    for end in ends:
        end.close()


def submits(gateway: Any) -> list[Submit]:
    return [message for message in gateway.received if isinstance(message, Submit)]


def test_each_line_of_a_pipe_gets_an_answer_and_is_remembered(
    gateway: Any, typed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    typed("count 2\n\n/params temperature=0 max-tokens=7\ncount 1\n/reset\ncount 3\n/quit\ncount 9")
    flags = ["--gateway", gateway.address, "--system", "be brief", "--seed", "4"]
    assert main(["chat", *flags]) == 0
    out, err = capsys.readouterr()
    assert out == "0 1 \n0 \n0 1 2 \n"
    assert "max_tokens=7, temperature=0.0, seed=4" in err and "forgotten" in err
    first, second, third = submits(gateway)
    assert [turn.role for turn in first.chat] == ["system", "user"]
    assert [turn.content for turn in second.chat] == ["be brief", "count 2", "0 1 ", "count 1"]
    assert [turn.content for turn in third.chat] == ["be brief", "count 3"]
    assert first.params.temperature is None and first.params.seed == 4
    assert (second.params.temperature, second.params.max_tokens) == (0.0, 7)


def test_a_failed_turn_is_told_and_not_remembered(
    gateway: Any, typed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    typed("refuse context_too_long\ncount 1\n")
    assert main(["chat", "--gateway", gateway.address]) == 1
    out, err = capsys.readouterr()
    assert out == "0 \n"
    assert "tandem chat: no (/reset forgets the conversation)" in err
    assert [turn.content for turn in submits(gateway)[-1].chat] == ["count 1"]


def test_without_a_gateway_the_first_turn_ends_it(
    typed: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed("hello\n")
    assert main(["chat", "--gateway", "nowhere"]) == 1
    assert "use tcp://host:port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/params", "defaults"),
        ("/params heat=3", "heat=3 is not NAME=VALUE of max_tokens"),
        ("/params temperature=hot", "not set: "),
        ("/system", "instructions: none"),
        ("/system be kind", "instructions: be kind"),
        ("/help", "/reset"),
        ("/fly", "/fly is no command"),
    ],
)
def test_commands_say_what_they_did(line: str, words: str) -> None:
    assert words in (Conversation(SamplingParams()).command(line) or "")


def test_a_parameter_can_be_unset() -> None:
    talk = Conversation(SamplingParams(seed=3))
    talk.command("/params seed=none")
    assert talk.params.seed is None and talk.command("/exit") is None


def test_on_a_terminal_ctrl_c_ends_the_answer_only(gateway: Any) -> None:
    """`hang` answers two tokens and goes on for ever."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tandem.cli", "chat", "--gateway", gateway.address],
        cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    try:
        read_until(controller, b"> ")
        os.write(controller, b"hang\n")
        read_until(controller, b"0 1 ")
        process.send_signal(signal.SIGINT)
        read_until(controller, b"> ")
        wait_for(lambda: any(isinstance(each, CancelRequest) for each in gateway.received))
        os.write(controller, b"count 3\n")
        read_until(controller, b"0 1 2 ")
        os.write(controller, b"/quit\n")
        read_until(controller, b"/quit")
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait(10)
        os.close(controller)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read_until(descriptor: int, words: bytes) -> bytes:
    text = b""
    deadline = time.monotonic() + 15
    while words not in text:
        left_s = deadline - time.monotonic()
        assert left_s > 0, text
        if select.select([descriptor], [], [], left_s)[0]:
            text += os.read(descriptor, 4096)
    return text
