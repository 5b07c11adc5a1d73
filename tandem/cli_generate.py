"""`tandem generate`: one prompt, its answer on standard output while it arrives."""

import argparse
import os
import sys

import msgspec

from tandem.async_client import DEFAULT_GATEWAY, RequestOptions
from tandem.async_stream import Result
from tandem.cli_keys import add_flags
from tandem.client import Client, Stream
from tandem.sampling import SamplingParams
from tandem.tables import render_timeline


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "generate",
        help="stream the answer to a prompt",
        description="Streams the answer to a prompt. What is not given is as the model's "
        "generation_config.json says.",
        allow_abbrev=False,
    )
    parser.add_argument("prompt", metavar="PROMPT", help="text; - reads standard input")
    parser.add_argument(
        "--gateway",
        metavar="ADDRESS",
        default=os.environ.get("TANDEM_GATEWAY") or DEFAULT_GATEWAY,
        help="address, or several with commas [TANDEM_GATEWAY; default %(default)s]",
    )
    add_flags(parser)
    parser.add_argument(
        "--chat", action="store_true", help="the prompt is a user's turn, not text to continue"
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="default: up to the context")
    parser.add_argument("--temperature", type=float, metavar="X", help="0 is greedy")
    parser.add_argument("--top-p", type=float, metavar="X", help="1 is off")
    parser.add_argument("--top-k", type=int, metavar="N", help="0 is off")
    parser.add_argument("--seed", type=int, metavar="N", help="repeats an answer")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end before it (repeat)")
    parser.add_argument("--ignore-eos", action="store_true", help="go on after end-of-text")
    parser.add_argument("--model", metavar="NAME", help="refused unless this model is served")
    parser.add_argument("--sla-class", metavar="NAME", help="default: the coordinator's")
    parser.add_argument(
        "--timeline", action="store_true", help="then show the request's stages on standard error"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 once the answer is complete. Raises TandemError."""
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    with Client(
        args.gateway, connect_timeout_s=5.0, keys=args.keys, key_name=args.key_name
    ) as client:
        if args.chat:
            turn = {"role": "user", "content": prompt}
            stream = client.submit(chat=[turn], **_options(args))
        else:
            stream = client.submit(prompt, **_options(args))
        with stream:
            result = stream.finish() if args.json else show(stream)
    if args.json:
        print(msgspec.json.encode(result).decode())
    if args.timeline:
        print(render_timeline(result.timeline, result.usage), file=sys.stderr)
    return 0


def show(stream: Stream) -> Result:
    """Write text as it arrives."""
    for text in stream.text():
        print(text, end="", flush=True)
    print(flush=True)
    return stream.result


def _options(args: argparse.Namespace) -> RequestOptions:
    options = RequestOptions(
        params=SamplingParams(
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            seed=args.seed,
            stop=tuple(args.stop or ()),
            ignore_eos=args.ignore_eos,
        )
    )
    if args.model:
        options["model"] = args.model
    if args.sla_class:
        options["sla_class"] = args.sla_class
    return options
