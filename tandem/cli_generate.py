"""`tandem generate`: one prompt, its answer on standard output while it arrives."""

import argparse
import sys

import msgspec

from tandem.async_client import RequestOptions
from tandem.async_stream import Result
from tandem.client import Client, Stream
from tandem.sampling import SamplingParams
from tandem.tables import render_timeline


def run(args: argparse.Namespace) -> int:
    """Exit status 0 once the answer is complete. Raises TandemError."""
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    with Client(
        args.gateway, connect_timeout_s=5.0, keys=args.keys, key_name=args.key_name
    ) as client:
        if args.chat:
            turn = {"role": "user", "content": prompt}
            stream = client.submit(chat=[turn], **request_options(args))
        else:
            stream = client.submit(prompt, **request_options(args))
        with stream:
            result = stream.finish() if args.json else show(stream)
    if args.json:
        print(msgspec.json.encode(result).decode())
    if args.timeline:
        print(render_timeline(result.timeline, result.usage), file=sys.stderr)
    if sys.stderr.isatty() or args.timeline:
        print(f"request {result.request_id}; tandem explain says more", file=sys.stderr)
    return 0


def show(stream: Stream) -> Result:
    """Write text as it arrives."""
    for text in stream.text():
        print(text, end="", flush=True)
    print(flush=True)
    return stream.result


def request_options(args: argparse.Namespace) -> RequestOptions:
    """What the flags of generate and chat say of a request."""
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
