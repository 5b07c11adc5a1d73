"""Flags that `tandem simulate` and `tandem plan` share."""

import argparse

from scheduling.batch.catalogue import BATCH_POLICIES
from scheduling.prefill.catalogue import PREFILL_POLICIES
from scheduling.routing.catalogue import DEFAULT_POLICY, PLACEMENT_POLICIES
from simulator.performance.profiles import profile_names

DEFAULT_SLA = "2000:100:0.9"
SLA_NAME = "target"
QUEUED_TOKENS, QUEUED_REQUESTS = 65_536, 256  # the coordinator's defaults


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """What is simulated, and with which policies."""
    parser.add_argument(
        "--profile",
        required=True,
        metavar="NAME|FILE",
        help=f"hardware and model: {', '.join(profile_names())}, or a .toml file",
    )
    parser.add_argument(
        "--trace",
        required=True,
        metavar="FILE|N:M",
        help="Mooncake .jsonl, Azure or ShareGPT .csv, or prompt:output lengths like 512:128",
    )
    parser.add_argument("--num-requests", type=int, default=1000, metavar="N", help="of each run")
    parser.add_argument(
        "--arrivals",
        choices=["trace", "poisson", "gamma", "mmpp"],
        help="default: the trace's own times scaled to the rate, poisson where it has none",
    )
    parser.add_argument(
        "--sla",
        default=DEFAULT_SLA,
        metavar="TTFT:TPOT:SHARE",
        help="targets in ms and the share of requests that must keep both; default %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default %(default)s")
    _add_node_flags(parser)
    _add_policy_flags(parser)


def _add_node_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-num-seqs", type=int, metavar="N", help="default: the profile's")
    parser.add_argument(
        "--max-output-tokens",
        type=int,
        metavar="N",
        help="what clients ask for; default: exactly what comes, the best case for reservation",
    )
    parser.add_argument(
        "--reserve",
        choices=["full", "predicted", "none"],
        default="full",
        help="pages set aside for growth, as of a node; default %(default)s",
    )
    for limit, usual in (("tokens", QUEUED_TOKENS), ("requests", QUEUED_REQUESTS)):
        parser.add_argument(
            f"--max-queued-{limit}-per-node",
            type=int,
            default=usual,
            metavar="N",
            help="as of the coordinator; default %(default)s",
        )
    parser.add_argument(
        "--predictor-sigma",
        type=float,
        metavar="X",
        help="predict answer lengths, off by a lognormal factor; 0: perfectly; default: not at all",
    )
    parser.add_argument(
        "--max-candidates",
        type=int,
        metavar="N",
        help="nodes offered to the placement policy per request; default: all (see docs)",
    )


def _add_policy_flags(parser: argparse.ArgumentParser) -> None:
    for role, names, default in (
        ("prefill", PREFILL_POLICIES, "fifo"),
        ("placement", PLACEMENT_POLICIES, DEFAULT_POLICY),
    ):
        parser.add_argument(
            f"--{role}-policy",
            choices=sorted(names),
            default=default,
            help="default %(default)s",
        )
    for role in ("batch", "prefill", "placement"):
        parser.add_argument(
            f"--{role}-option",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help=f"option of the {role} policy",
        )


def add_batch_policy(parser: argparse.ArgumentParser) -> None:
    """One batch policy."""
    parser.add_argument(
        "--batch-policy",
        choices=sorted(BATCH_POLICIES),
        default="fifo",
        help="default %(default)s",
    )


def add_coordinator_flags(parser: argparse.ArgumentParser) -> None:
    """What the coordinator does besides placing; off unless asked for."""
    parser.add_argument(
        "--balance",
        choices=["off", "on"],
        default="off",
        help="change roles with the load, as the coordinator; default %(default)s",
    )
    parser.add_argument(
        "--balance-dwell-s", type=float, default=30.0, metavar="S", help="default %(default)s"
    )
    parser.add_argument(
        "--early-rejection",
        choices=["off", "on"],
        default="off",
        help="refuse at once what would miss its targets; default %(default)s",
    )
    parser.add_argument(
        "--early-rejection-tolerance",
        type=float,
        default=1.0,
        metavar="X",
        help="of the targets, as of the coordinator; default %(default)s",
    )
