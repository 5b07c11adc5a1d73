"""Runs a pure core over the events that a process recorded, and compares what it decides.

    python -m coordinator --event-log /tmp/events ...      (or gateway, prefill_node, decode_node)
    scripts/replay /tmp/events                             does today's code decide the same?
    scripts/replay /tmp/events --show --from 100 --to 120  what went in and came out

Ends 0 where every decision is the recorded one, 1 at the first that is not, 2 for a bad file.
"""

import argparse
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coordinator.config import CoordinatorConfig
from coordinator.core import Coordinator
from gateway.config import GatewayConfig
from gateway.ledger import Ledger
from gateway.live import Identity
from gateway.tokenize import Tokenization
from node.config import NodeConfig
from node.device import Device
from node.page_store import NoPageStore
from node.state import NodeIdentity
from tandem.event_log import BadLog, Recording, pack, read_log


def build_coordinator(config: CoordinatorConfig, incarnation: int, now: float) -> object:
    """As coordinator/server.py does."""
    return Coordinator(config, incarnation=incarnation, now=now)


def build_gateway(config: GatewayConfig, identity: Identity) -> object:
    """As gateway/server.py does; the tokenizer comes from the model folder."""
    load_model = runpy.run_module("gateway", run_name="replay")["load_model"]
    tokenizer = load_model(config).tokenizer
    tokens = Tokenization(tokenizer, num_threads=1)
    return Ledger(identity, tokens.decode, tokens.whole)


@dataclass(frozen=True, slots=True)
class NoRunner:
    """Recorded results stand in for a device."""

    num_pages: int


def build_node(
    config: NodeConfig, identity: NodeIdentity, num_pages: int, copy_bytes_per_s: float | None
) -> object:
    """As node/__main__.py does, by its very functions."""
    node = runpy.run_module("node", run_name="replay")
    device = Device(NoRunner(num_pages), identity, False, "")  # type: ignore[arg-type]
    swap = None
    if copy_bytes_per_s is not None:
        swap = node["make_swap"](config, identity, NoPageStore(), copy_bytes_per_s)
    built: object = node["compose_core"](config, device, swap)
    return built


BUILDERS: dict[str, Callable[..., object]] = {
    "coordinator": build_coordinator,
    "gateway": build_gateway,
    "node": build_node,
}


def replay(recording: Recording, options: argparse.Namespace) -> int:
    """The number of calls whose decision differs, at most one: after it states differ anyway."""
    core = BUILDERS[recording.role](*recording.built_from)
    for number, call in enumerate(recording.calls):
        answer = pack(getattr(core, call.method)(*call.arguments))
        if options.show and options.first <= number < options.last:
            print(f"{number}: {call.method}{call.arguments}\n    -> {answer}")
        if answer != call.answer:
            print(f"call {number}, {call.method}{call.arguments}")
            print(f"  recorded: {call.answer}\n  now:      {answer}")
            return 1
    return 0


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="scripts/replay", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("log", type=Path, help="what --event-log wrote")
    parser.add_argument("--show", action="store_true", help="print calls and decisions")
    parser.add_argument("--from", dest="first", type=int, default=0, help="first call to show")
    parser.add_argument("--to", dest="last", type=int, default=sys.maxsize, help="show up to here")
    options = parser.parse_args()
    try:
        recording = read_log(options.log)
    except (BadLog, OSError) as error:
        print(f"scripts/replay: {error}", file=sys.stderr)
        return 2
    status = replay(recording, options)
    verdict = "another decision" if status else "the same decisions"
    print(f"{recording.role}: {len(recording.calls)} calls, {verdict}")
    return status


if __name__ == "__main__":
    sys.exit(main())
