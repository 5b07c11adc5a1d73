"""`tandem drain`: ask a node or gateway to finish what it has and leave."""

import argparse
import asyncio
import sys

from tandem.cli_keys import keyring
from tandem.keys import Keyring
from tandem.messages.membership import (
    ClusterStatus,
    DrainAnswer,
    DrainMember,
    GatewayStatus,
    NodeStatus,
)
from tandem.operator_orders import ANSWER_S, ask
from tandem.status import query_status

WATCH_S = 0.5
Member = NodeStatus | GatewayStatus


def run(args: argparse.Namespace) -> int:
    """Exit status: 0 where it drains (with --wait: has left), 1 where it does not."""
    keys = keyring(args, "operator")
    return asyncio.run(
        drain(args.coordinator, args.name, force=args.force, wait=args.wait, keys=keys)
    )


async def drain(
    coordinator: str, name: str, *, force: bool, wait: bool, keys: Keyring | None = None
) -> int:
    """See `run`. Raises UnavailableError where no coordinator answers."""
    before = None
    if wait:
        before = find_member(await query_status(coordinator, keys), name)
    order = DrainMember(name=name, force=force)
    answer = await ask(coordinator, order, DrainAnswer, keys, answer_s=ANSWER_S)
    if not answer.accepted:
        print(f"tandem drain: {answer.message}", file=sys.stderr)
        return 1
    print(answer.message, flush=True)
    if wait:
        await watch(coordinator, name, before, keys)
    return 0


async def watch(
    coordinator: str, name: str, seen: Member | None, keys: Keyring | None = None
) -> None:
    """Say what is left whenever that changes, until the member has left."""
    last = ""
    while True:
        member = find_member(await query_status(coordinator, keys), name)
        if member is None or has_come_back(seen, member):
            print(f"{name} has left" + (" and is back" if member else ""), flush=True)
            return
        text = describe_rest(member)
        if text != last:
            print(f"{name}: {text}", flush=True)
        seen, last = member, text
        await asyncio.sleep(WATCH_S)


def find_member(status: ClusterStatus, name: str) -> Member | None:
    """The node or gateway of that name."""
    members: list[tuple[str, Member]] = [(node.node_id, node) for node in status.nodes]
    members += [(gateway.gateway_id, gateway) for gateway in status.gateways]
    return dict(members).get(name)


def has_come_back(seen: Member | None, member: Member) -> bool:
    """Whether the name belongs to another process by now, one that does not drain."""
    if seen is None or member.draining:
        return False
    is_other = (
        isinstance(seen, NodeStatus)
        and isinstance(member, NodeStatus)
        and seen.epoch != member.epoch
    )
    return seen.draining or is_other


def describe_rest(member: Member) -> str:
    """What is left to do, in words."""
    if isinstance(member, GatewayStatus):
        return f"{member.num_live_requests} live requests"
    if member.load is None:
        return "no word from it yet"
    load = member.load
    return (
        f"{load.num_prefill_waiting} prompts, {load.num_decode_running} decoding, "
        f"{load.num_decode_waiting} waiting to decode, {load.num_transfers} transfers, "
        f"{load.num_requests} requests in all"
    )
