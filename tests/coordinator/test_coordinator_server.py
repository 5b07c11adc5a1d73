"""The coordinator's shell over real loopback sockets."""

import asyncio

import msgspec
import zmq.asyncio

from coordinator.config import CoordinatorConfig
from coordinator.server import serve
from tandem.messages.membership import ClusterStatus, NodeWelcome, StatusQuery, ToNode
from tandem.messages.placement import GatewayWelcome, ToGatewayFromCoordinator
from tandem.sockets import Link
from tandem.status import query_status, render_status


async def converse(cluster, address: str) -> list[msgspec.Struct]:
    """Speak as a node, a gateway and an operator, after some garbage."""
    context = zmq.asyncio.Context()
    links = [
        Link(context, union, identity=name, address=address)
        for name, union in [
            (b"node", ToNode),
            (b"gateway", ToGatewayFromCoordinator),
            (b"operator", ClusterStatus),
        ]
    ]
    garbage = context.socket(zmq.DEALER)
    garbage.set(zmq.LINGER, 0)
    garbage.connect(address)
    answers = []
    try:
        await garbage.send_multipart([b"GET / HTTP/1.1"])
        hellos = [cluster.node_hello("d0", "decode"), cluster.gateway_hello(), StatusQuery()]
        for link, message in zip(links, hellos, strict=True):
            link.send(message)
            answers.append(await asyncio.wait_for(anext(link.messages()), 5))
    finally:
        garbage.close()
        for link in links:
            link.close()
        context.term()
    return answers


def test_nodes_gateways_and_operators_share_one_port(make_cluster) -> None:
    async def run() -> list[msgspec.Struct]:
        stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
        server = asyncio.create_task(
            serve(
                CoordinatorConfig(port=0, dashboard_port=-1), stop=stop, on_ready=ready.set_result
            )
        )
        answers = await converse(make_cluster(), await asyncio.wait_for(ready, 5))
        stop.set()
        await asyncio.wait_for(server, 5)
        return answers

    welcome, gateway_welcome, status = asyncio.run(run())
    assert isinstance(welcome, NodeWelcome)
    assert isinstance(gateway_welcome, GatewayWelcome)
    assert gateway_welcome.num_decode_nodes == 1
    assert gateway_welcome.max_model_len == 4096
    assert isinstance(status, ClusterStatus)
    assert (status.num_dropped_messages, len(status.nodes), len(status.gateways)) == (1, 1, 1)


async def fill(cluster, address: str, names: list[str]) -> None:
    """Let nodes of these names join."""
    context = zmq.asyncio.Context()
    link: Link[msgspec.Struct] = Link(context, ToNode, identity=b"nodes", address=address)
    try:
        for name in names:
            link.send(cluster.node_hello(name, "decode"))
            assert isinstance(await anext(link.messages()), NodeWelcome)
    finally:
        link.close()
        context.term()


def test_the_status_of_two_hundred_nodes_arrives_whole(make_cluster) -> None:
    names = [f"node-{number:03}" for number in range(200)]

    async def run() -> ClusterStatus:
        stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
        server = asyncio.create_task(
            serve(
                CoordinatorConfig(port=0, dashboard_port=-1), stop=stop, on_ready=ready.set_result
            )
        )
        address = await asyncio.wait_for(ready, 5)
        await asyncio.wait_for(fill(make_cluster(), address, names), 5)
        status = await query_status(address)
        stop.set()
        await asyncio.wait_for(server, 5)
        return status

    status = asyncio.run(run())
    assert [node.node_id for node in status.nodes] == names
    lines = render_status(status).splitlines()
    assert sum(line.startswith("node-") for line in lines) == 600  # nodes, pages, costs
