"""`tandem up`: a whole deployment on this host, in the foreground, until Ctrl-C."""

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tandem.launch import (
    COORDINATOR_PORT,
    GATEWAY_PORT,
    ClusterError,
    LocalCluster,
    is_free,
)
from tandem.launch_plan import ROLES

WATCH_S = 0.2


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "up",
        help="start coordinator, gateway and nodes on this host",
        usage="tandem up --model MODEL [--prefill N] [--decode N] [flags] [flags of the nodes]",
        description="Starts a deployment on this host and drains it on Ctrl-C (a second one kills "
        "it). Flags that are not listed here go to every node (see scripts/launch_prefill --help), "
        "for example --num-pages 512 --transport zmq.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="model folder, or a Hub name to download")
    parser.add_argument("--prefill", type=int, default=1, metavar="N", help="prefill nodes")
    parser.add_argument("--decode", type=int, default=1, metavar="N", help="decode nodes")
    parser.add_argument("--num-gateways", type=int, default=1, metavar="N", help="gateways")
    for role, port in (("coordinator", COORDINATOR_PORT), ("gateway", GATEWAY_PORT)):
        parser.add_argument(
            f"--{role}-port",
            type=int,
            metavar="N",
            help=f"default {port}, or a free one where that is taken; 0: a free one"
            + (" (of the first gateway; others get free ones)" if role == "gateway" else ""),
        )
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


def run(args: argparse.Namespace, node_args: Sequence[str]) -> int:
    """Exit status: 0 after Ctrl-C and a clean drain, else 1. Raises ValueError."""
    started = time.monotonic()
    # A shell that starts us in the background would have us ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cluster = make_cluster(args, node_args)
    try:
        cluster.start()
    except ClusterError as error:
        print(f"tandem up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tandem up: interrupted while starting; all processes ended", file=sys.stderr)
        return 1
    try:
        print(_welcome(cluster, time.monotonic() - started), flush=True)
        status = watch(cluster)
    except KeyboardInterrupt:
        print("\nDraining (Ctrl-C again kills)", flush=True)
        status = 0
    return drain(cluster) or status


def make_cluster(args: argparse.Namespace, node_args: Sequence[str]) -> LocalCluster:
    """The cluster that the flags describe."""
    shared = [
        *(["--served-model-name", args.served_model_name] if args.served_model_name else []),
        *(["--max-model-len", str(args.max_model_len)] if args.max_model_len else []),
    ]
    config = ["--config", args.config] if args.config else []
    width = len("coordinator")
    return LocalCluster(
        model=args.model,
        num_prefill=args.prefill,
        num_decode=args.decode,
        num_gateways=args.num_gateways,
        node_args=[*config, *shared, *node_args],
        gateway_args=[*config, *shared, *args.gateway_args],
        coordinator_args=[*config, *args.coordinator_args],
        coordinator_port=choose_port(args.coordinator_port, COORDINATOR_PORT),
        gateway_port=choose_port(args.gateway_port, GATEWAY_PORT),
        threads_per_node=args.threads_per_node,
        run_dir=args.run_dir,
        sink=lambda name, line: print(f"{name:<{width}} | {line}", flush=True),
        drain_s=args.drain_s,
        secure=args.secure,
    )


def watch(cluster: LocalCluster) -> int:
    """Report deaths; returns 1 once the deployment can no longer serve, else runs for ever.

    A dead node or gateway is the cluster's to survive as long as there are others.
    """
    reported: set[str] = set()
    while True:
        for name in cluster.dead():
            if name not in reported:
                reported.add(name)
                has_left = cluster.processes[name].exit_status == 0
                text = f"{name} has left" if has_left else cluster.explain_death(name)
                print(f"tandem up: {text}", file=sys.stderr, flush=True)
        living = [n for n, p in cluster.processes.items() if p.exit_status is None]
        kinds = {cluster.plans[name].module.removesuffix("_node") for name in living}
        if not {"coordinator", "gateway"} <= kinds or kinds.isdisjoint(ROLES):
            print("tandem up: nothing is left to serve requests; stopping", file=sys.stderr)
            return 1
        time.sleep(WATCH_S)


def drain(cluster: LocalCluster) -> int:
    """Stop in order; 1 where a process had to be killed or failed."""
    try:
        killed = cluster.stop()
    except KeyboardInterrupt:
        cluster.kill()
        print("tandem up: killed", file=sys.stderr)
        return 1
    if killed:
        print(f"tandem up: did not end in time, killed: {', '.join(killed)}", file=sys.stderr)
    failed = [name for name, p in cluster.processes.items() if p.exit_status != 0]
    if failed:
        print(f"tandem up: failed: {', '.join(failed)}; logs in {cluster.run_dir}", file=sys.stderr)
        return 1
    print("Stopped")
    return 0


def choose_port(given: int | None, usual: int) -> int | None:
    """The port asked for; the usual one where it is free; None for any."""
    if given is None:
        return usual if is_free(usual) else None
    return given or None


def _welcome(cluster: LocalCluster, seconds: float) -> str:
    keys = f" --keys {cluster.keys}" if cluster.keys else ""
    return "\n".join(
        [
            f"\nReady after {seconds:.1f} s; logs in {cluster.run_dir}",
            *(
                f'  tandem generate --gateway {address}{keys} "def fibonacci(n):"'
                for address in cluster.gateway_addresses
            ),
            f"  tandem status --coordinator {cluster.coordinator_address}{keys}",
            "Ctrl-C drains and stops",
        ]
    )
