"""`tandem chat`: a conversation by the model's chat template, on a terminal or through a pipe."""

import argparse
import readline  # noqa: F401  gives input() a history and the usual keys
import sys
from collections.abc import Callable, Iterator

import msgspec

from tandem.async_client import RequestOptions
from tandem.cli_generate import request_options
from tandem.client import Client
from tandem.errors import ContextTooLongError, GatewayUnreachableError, TandemError
from tandem.sampling import SamplingParams

HELP = """\
/reset           forget the conversation
/system TEXT     instructions for the model; without TEXT none; forgets the conversation
/params K=V ...  set temperature, top_p, max_tokens, ...; without any show them; none unsets one
/help            this
/quit            leave (Ctrl-D does too); Ctrl-C ends an answer"""
Say = Callable[[str], None]


class Conversation:
    """Turns so far, and how the next answer is drawn. No sockets."""

    def __init__(self, params: SamplingParams, system: str | None = None) -> None:
        self.params = params
        self._system = system
        self._turns: list[dict[str, str]] = []

    def asking(self, text: str) -> list[dict[str, str]]:
        """What to submit for a user's next turn."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, *self._turns, {"role": "user", "content": text}]

    def answered(self, text: str, answer: str) -> None:
        """A turn and its answer, as far as it came."""
        self._turns += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": answer},
        ]

    def command(self, line: str) -> str | None:
        """Obey `/reset` and the like; what to tell the user, or None for `/quit`."""
        word, _, rest = line.partition(" ")
        match word:
            case "/quit" | "/exit":
                return None
            case "/reset":
                self._turns.clear()
                return "the conversation is forgotten"
            case "/system":
                self._turns.clear()
                self._system = rest.strip() or None
                return f"instructions: {self._system or 'none'}"
            case "/params":
                return self._set_params(rest.split())
            case "/help":
                return HELP
        return f"{word} is no command; these are:\n{HELP}"

    def _set_params(self, words: list[str]) -> str:
        changes: dict[str, object] = {}
        for word in words:
            name, _, value = word.partition("=")
            name = name.replace("-", "_")
            if name not in SamplingParams.__struct_fields__ or not value:
                return f"{word} is not NAME=VALUE of {', '.join(SamplingParams.__struct_fields__)}"
            changes[name] = None if value == "none" else value
        try:
            given = {**msgspec.to_builtins(self.params), **changes}
            params = msgspec.convert(given, SamplingParams, strict=False)
        except ValueError as error:
            return f"not set: {error}"
        self.params = params
        return ", ".join(f"{k}={v}" for k, v in msgspec.to_builtins(params).items()) or "defaults"


def run(args: argparse.Namespace) -> int:
    """Exit status: 0 at the end; 1 where a piped turn failed. Raises GatewayUnreachableError."""
    is_terminal = sys.stdin.isatty()
    options = request_options(args)
    talk = Conversation(options["params"], args.system)
    num_failed = 0
    with Client(
        args.gateway, connect_timeout_s=5.0, keys=args.keys, key_name=args.key_name
    ) as client:
        if is_terminal:
            print(f"{client.ping().model}: /help lists commands", file=sys.stderr)
        for line in _lines(is_terminal):
            if line.startswith("/"):
                reply = talk.command(line)
                if reply is None:
                    break
                print(reply, file=sys.stderr)
            elif not _answer(client, talk, line, options):
                num_failed += 1
    return 1 if num_failed and not is_terminal else 0


def _answer(client: Client, talk: Conversation, line: str, options: RequestOptions) -> bool:
    """Stream one answer; Ctrl-C keeps what came of it. False where it failed."""
    options["params"] = talk.params
    try:
        stream = client.submit(chat=talk.asking(line), **options)
        try:
            for text in stream.text():
                print(text, end="", flush=True)
        except KeyboardInterrupt:
            stream.cancel()
        print(flush=True)
    except GatewayUnreachableError:
        raise
    except TandemError as error:
        print(f"tandem chat: {_advise(error)}", file=sys.stderr)
        return False
    talk.answered(line, stream.received_text)
    return True


def _advise(error: TandemError) -> str:
    advice = " (/reset forgets the conversation)" if isinstance(error, ContextTooLongError) else ""
    return f"{error}{advice}"


def _lines(is_terminal: bool) -> Iterator[str]:
    """The user's lines that are not empty, until the end of input."""
    while True:
        try:
            line = input("> " if is_terminal else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print("\n/quit or Ctrl-D leaves", file=sys.stderr)
            continue
        if line:
            yield line
