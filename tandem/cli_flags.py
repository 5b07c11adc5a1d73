"""Flags of the commands that serve and ask: up, generate, chat. Declared without what runs them.

`tandem COMMAND --help` must answer at once, and what runs the commands loads numpy and ZeroMQ.
"""

import argparse
import os
import shlex
from pathlib import Path

from tandem.addresses import (
    COORDINATOR_PORT,
    DASHBOARD_PORT,
    DEFAULT_GATEWAY,
    GATEWAY_PORT,
    HTTP_PORT,
)


def add_key_flags(parser: argparse.ArgumentParser) -> None:
    """`--keys` and `--key-name`, for commands that talk to a deployment."""
    parser.add_argument(
        "--keys",
        metavar="FOLDER",
        default=os.environ.get("TANDEM_KEYS"),
        help="keys folder, where the deployment has keys [TANDEM_KEYS]",
    )
    parser.add_argument(
        "--key-name", metavar="NAME", help="which key, where the folder has several of the kind"
    )


def add_up(parser: argparse.ArgumentParser) -> None:
    """`tandem up`; flags that it does not know are the nodes'."""
    parser.usage = "tandem up --model MODEL [--prefill N] [--decode N] [flags] [flags of the nodes]"
    parser.description = (
        "Starts a deployment on this host and drains it on Ctrl-C (a second one kills it). Flags "
        "that are not listed here go to every node (see scripts/launch_prefill --help), for "
        "example --num-pages 512 --transport zmq."
    )
    parser.add_argument("--model", required=True, help="model folder, or a Hub name to download")
    parser.add_argument(
        "--prefill",
        type=int,
        default=1,
        metavar="N",
        help="prefill nodes; 0: the decode nodes serve both roles",
    )
    parser.add_argument("--decode", type=int, default=1, metavar="N", help="decode nodes")
    parser.add_argument("--num-gateways", type=int, default=1, metavar="N", help="gateways")
    _add_ports(parser)
    for role in ("coordinator", "gateway"):
        parser.add_argument(
            f"--{role}-args",
            type=shlex.split,
            default=[],
            metavar="'FLAGS'",
            help=f"further flags of the {role}",
        )
    parser.add_argument("--served-model-name", metavar="NAME", help="of gateway and nodes")
    parser.add_argument("--max-model-len", type=int, metavar="N", help="of gateway and nodes")
    parser.add_argument("--config", metavar="FILE", help="TOML file for all processes")
    for flag, choices in (
        ("--log-level", ("info", "debug", "warning", "error")),
        ("--log-format", ("text", "json")),
    ):
        parser.add_argument(flag, choices=choices, help=f"of all processes; default {choices[0]}")
    parser.add_argument(
        "--secure",
        action="store_true",
        help="encrypt all connections and check who is at their ends, with keys in RUN_DIR/keys",
    )
    parser.add_argument(
        "--threads-per-node", type=int, default=1, metavar="N", help="default %(default)s"
    )
    parser.add_argument(
        "--run-dir", type=Path, metavar="FOLDER", help="for logs; default: a temporary one"
    )
    parser.add_argument(
        "--drain-s", type=float, default=30.0, metavar="X", help="patience with Ctrl-C, in seconds"
    )
    parser.add_argument(
        "--check", action="store_true", help="say whether all of it could start, and start nothing"
    )
    parser.add_argument(
        "--dump-config",
        action="store_true",
        help="print every process's settings and where each comes from, as a file for --config",
    )


def _add_ports(parser: argparse.ArgumentParser) -> None:
    first = " (of the first gateway; others get free ones)"
    for flag, port, whose in (
        ("--coordinator-port", COORDINATOR_PORT, ""),
        ("--gateway-port", GATEWAY_PORT, first),
        ("--http-port", HTTP_PORT, f" of the OpenAI-compatible API; -1: none{first}"),
        ("--dashboard-port", DASHBOARD_PORT, " of the operators' dashboard; -1: none"),
    ):
        text = f"default {port}, or a free one where that is taken; 0: a free one;{whose}"
        parser.add_argument(flag, type=int, metavar="N", help=text.rstrip(";"))


def add_generate(parser: argparse.ArgumentParser) -> None:
    """`tandem generate`."""
    parser.description = (
        "Streams the answer to a prompt. What is not given is as the model's "
        "generation_config.json says."
    )
    parser.add_argument("prompt", metavar="PROMPT", help="text; - reads standard input")
    _add_gateway(parser)
    parser.add_argument(
        "--chat", action="store_true", help="the prompt is a user's turn, not text to continue"
    )
    _add_sampling(parser)
    parser.add_argument(
        "--timeline", action="store_true", help="then show the request's stages on standard error"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")


def add_chat(parser: argparse.ArgumentParser) -> None:
    """`tandem chat`."""
    parser.description = (
        "Talks with the model by its own chat template: one line is one turn, /help lists what "
        "else there is. Ctrl-C ends an answer, not the program. Piped, each line of standard input "
        "gets an answer."
    )
    _add_gateway(parser)
    parser.add_argument("--system", metavar="TEXT", help="instructions before the first turn")
    _add_sampling(parser)


def _add_gateway(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gateway",
        metavar="ADDRESS",
        default=os.environ.get("TANDEM_GATEWAY") or DEFAULT_GATEWAY,
        help="address, or several with commas [TANDEM_GATEWAY; default %(default)s]",
    )
    add_key_flags(parser)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=int, metavar="N", help="default: up to the context")
    parser.add_argument("--temperature", type=float, metavar="X", help="0 is greedy")
    parser.add_argument("--top-p", type=float, metavar="X", help="1 is off")
    parser.add_argument("--top-k", type=int, metavar="N", help="0 is off")
    parser.add_argument("--seed", type=int, metavar="N", help="repeats an answer")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end before it (repeat)")
    parser.add_argument("--ignore-eos", action="store_true", help="go on after end-of-text")
    parser.add_argument("--model", metavar="NAME", help="refused unless this model is served")
    parser.add_argument("--sla-class", metavar="NAME", help="default: the coordinator's")
