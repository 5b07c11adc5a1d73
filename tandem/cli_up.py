"""`tandem up`: a whole deployment on this host, in the foreground, until Ctrl-C."""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from tandem.addresses import COORDINATOR_PORT, DASHBOARD_PORT, GATEWAY_PORT, HTTP_PORT
from tandem.child_process import child_environment
from tandem.foreign_flags import translate
from tandem.launch import ClusterError, LocalCluster, is_free
from tandem.launch_plan import ROLES

WATCH_S = 0.2


def run(args: argparse.Namespace) -> int:
    """Exit status: 0 after Ctrl-C and a clean drain, else 1. Raises ValueError."""
    node_args = translate(args.others)
    if args.check or args.dump_config:
        return report(args, node_args)
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
    everybodys = [
        *(["--config", args.config] if args.config else []),
        *(["--log-level", args.log_level] if args.log_level else []),
        *(["--log-format", args.log_format] if args.log_format else []),
    ]
    width = len("coordinator")
    return LocalCluster(
        model=args.model,
        num_prefill=args.prefill,
        num_decode=args.decode,
        num_gateways=args.num_gateways,
        node_args=[*everybodys, *shared, *node_args],
        gateway_args=[*everybodys, *shared, *args.gateway_args],
        coordinator_args=[*everybodys, *args.coordinator_args],
        coordinator_port=choose_port(args.coordinator_port, COORDINATOR_PORT),
        gateway_port=choose_port(args.gateway_port, GATEWAY_PORT),
        http_port=choose_port(args.http_port, HTTP_PORT),
        dashboard_port=choose_port(args.dashboard_port, DASHBOARD_PORT),
        threads_per_node=args.threads_per_node,
        run_dir=args.run_dir,
        sink=lambda name, line: print(f"{name:<{width}} | {line}", flush=True),
        drain_s=args.drain_s,
        secure=args.secure,
    )


def report(args: argparse.Namespace, node_args: Sequence[str]) -> int:
    """`--check` and `--dump-config`: what each kind of process says of its flags; 1 where one
    could not start."""
    args.secure = False  # its keys are made by the start
    cluster = make_cluster(args, node_args)
    plans = {plan.module: plan for plan in cluster.plans.values()}
    if args.dump_config and "prefill_node" in plans:
        del plans["decode_node"]  # its table is the prefill node's
    status = 0
    for module, plan in sorted(plans.items()):
        flag = "--dump-config" if args.dump_config else "--check"
        if args.check:
            print(f"{module}:", flush=True)
        command = [sys.executable, "-P", "-m", module, *plan.flags, flag]
        done = subprocess.run(command, env=child_environment(os.environ, 1), check=False)
        status = max(status, min(done.returncode, 1))
        print(flush=True)
    cluster.stop()  # removes the folder for logs that was made for it
    return status


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
    lines = [
        f"\nReady after {seconds:.1f} s; logs in {cluster.run_dir}",
        *(
            f'  tandem generate --gateway {address}{keys} "def fibonacci(n):"'
            for address in cluster.gateway_addresses
        ),
        f"  tandem status --coordinator {cluster.coordinator_address}{keys}",
    ]
    if cluster.http_addresses:
        lines.append(f"  curl {cluster.http_addresses[0]}/v1/models   (OpenAI's API)")
    if cluster.dashboard_address:
        lines.append(f"  tandem top --dashboard {cluster.dashboard_address}   (or in a browser)")
    if cluster.keys and (cluster.http_addresses or cluster.dashboard_address):
        lines.append(f"  tandem keys bearer NAME --role operator{keys}   (HTTP callers need a key)")
    return "\n".join([*lines, "Ctrl-C drains and stops"])
