"""The gateway's shell over real loopback sockets, with a fake coordinator and fake nodes."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import zmq.asyncio

from gateway.actions import ToCoordinator
from gateway.config import GatewayConfig
from gateway.ledger import Ledger
from gateway.length_records import read_records
from gateway.server import serve
from tandem.messages.placement import PlaceRefused
from tandem.messages.serving import Decode
from tests.gateway.deployment import Client, Cluster, running_cluster, running_gateway, until


@pytest.fixture
def run_gateway(served_model, make_world) -> Callable[..., None]:
    """Run an async test body as body(cluster, client) beside a gateway with the given settings."""

    def run(body: Callable[[Cluster, Client], Awaitable[None]], **settings) -> None:
        async def main() -> None:
            async with (
                running_cluster(make_world()) as cluster,
                running_gateway(cluster, served_model, **settings) as address,
            ):
                client = Client(cluster.context, address)
                try:
                    await body(cluster, client)
                finally:
                    client.close()

        asyncio.run(main())

    return run


def test_a_plain_msgpack_speaker_is_served(run_gateway, tokenizer) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        await client.say({"type": "ClientPing", "label": "p"})
        pong = await client.hear()
        assert (pong["label"], pong["model"], pong["ready"]) == ("p", "demo", True)
        assert pong["max_model_len"] == 300
        await client.submit("def f", seed=2**64 - 1)
        accepted, ids, text, done = await client.answer()
        assert (accepted["label"], len(accepted["request_id"])) == ("mine", 16)
        assert accepted["seed"] == 2**64 - 1
        assert accepted["model_fingerprint"] == "w"
        assert accepted["num_prompt_tokens"] == len(tokenizer("def f")["input_ids"])
        assert len(ids) == 8
        assert text == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert (done["type"], done["reason"]) == ("Done", "length")
        assert done["usage"]["num_output_tokens"] == 8
        line = done["timeline"]
        assert (line["prefill_node"], line["decode_node"], line["num_attempts"]) == ("p0", "d0", 1)
        assert 0 <= line["placed_s"] <= line["first_token_s"] <= line["finished_s"]
        assert done["sla_attained"]
        await until(lambda: len(cluster.ends) == 1 and cluster.num_beats >= 2)
        assert all(not node.specs for node in cluster.world.nodes.values())

    run_gateway(body)


def test_chat_and_token_ids_are_taken_too(run_gateway, tokenizer) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        chat = [{"role": "user", "content": "hello"}]
        await client.say(
            {"type": "Submit", "label": "c", "chat": chat, "params": {"max_tokens": 2}}
        )
        accepted, ids, _, _ = await client.answer()
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        num_tokens = len(tokenizer(rendered, add_special_tokens=False)["input_ids"])
        assert (accepted["num_prompt_tokens"], len(ids)) == (num_tokens, 2)
        frame = b"".join(i.to_bytes(4, "little") for i in (5, 6, 7))
        message = {"type": "Submit", "label": "i", "prompt_ids": 0, "params": {"max_tokens": 3}}
        await client.say(message, frame)
        accepted, ids, _, _ = await client.answer()
        assert (accepted["num_prompt_tokens"], len(ids)) == (3, 3)

    run_gateway(body)


def test_what_cannot_be_served_is_refused_and_garbage_is_told(run_gateway) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        cases: list[tuple[dict, tuple[bytes, ...], str]] = [
            ({"prompt": 0, "model": "other"}, (b"a",), "unknown_model"),
            ({"prompt": 0, "sla_class": "gold"}, (b"a",), "unknown_sla_class"),
            ({"prompt": 0}, (b"",), "invalid_request"),
            ({}, (), "invalid_request"),
            ({"prompt": 0}, (b"a b c " * 300,), "context_too_long"),
            ({"prompt": 0, "params": {"top_p": 2.0}}, (b"a",), "invalid_request"),
        ]
        for fields, frames, code in cases:
            await client.say({"type": "Submit", "label": code, **fields}, *frames)
            refused = await client.hear()
            assert (refused["type"], refused["label"], refused["code"]) == ("Refused", code, code)
        await client.say({"type": "Submit", "label": "x" * 129, "prompt": 0}, b"a")
        malformed = await client.hear()
        assert malformed["type"] == "Malformed"
        assert "128" in malformed["message"]
        await client.say({"type": "Destroy"})
        assert (await client.hear())["type"] == "Malformed"
        await client.submit()
        assert (await client.answer())[3]["reason"] == "length"

    run_gateway(body)


def test_a_request_that_is_sent_again_runs_once(run_gateway) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        cluster.pause.set()
        for _ in range(3):  # the second comes while the first is tokenised
            await client.submit()
        first = await client.hear()
        await client.submit()
        assert first["type"] == "Accepted"
        assert await client.hear() == first
        cluster.pause.clear()
        while (message := await client.hear())["type"] != "Done":
            assert message["request_id"] == first["request_id"]
        assert message["request_id"] == first["request_id"]
        await client.received(first, 8, is_done=True)
        await until(lambda: len(cluster.ends) > 0)
        await client.submit()
        another = (await client.answer())[0]
        assert another["request_id"] != first["request_id"], "a label may be used again then"
        await until(lambda: len(cluster.ends) > 1)
        ended = {end.request_id for end in cluster.ends}
        assert ended == {first["request_id"], another["request_id"]}

    run_gateway(body)


def test_a_burst_of_a_busy_client_is_taken_at_default_settings(run_gateway) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        for number in range(4000):
            await client.say({"type": "ClientPing", "label": str(number)})
        heard = [await client.hear() for _ in range(4000)]
        assert {message["type"] for message in heard} == {"ClientPong"}

    run_gateway(body)


def test_a_dead_node_does_not_break_the_stream(run_gateway) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        await client.submit(max_tokens=8)
        undisturbed = (await client.answer())[1]
        await client.submit(max_tokens=8)
        accepted = await client.hear()
        first = await client.hear()
        await cluster.kill("d0")
        cluster.world.add_node("d0")
        cluster.start("d0")
        ids, message = list(first["token_ids"]), await client.hear()
        while message["type"] == "Output":
            assert message["index"] == len(ids)
            ids += message["token_ids"]
            message = await client.hear()
        assert (message["request_id"], ids) == (accepted["request_id"], undisturbed)
        assert message["timeline"]["num_attempts"] == 2

    run_gateway(body)


def test_a_cancel_reaches_the_nodes(run_gateway) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        await client.submit(max_tokens=250)
        accepted = await client.hear()
        await client.hear()
        await client.say({"type": "CancelRequest", "request_id": accepted["request_id"]})
        while (message := await client.hear())["type"] == "Output":
            pass
        assert (message["reason"], message["code"]) == ("cancelled", "cancelled")
        await until(lambda: not any(node.specs for node in cluster.world.nodes.values()))

    run_gateway(body)


def test_a_client_that_hangs_up_frees_the_nodes(run_gateway) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        await client.submit(max_tokens=250)
        await client.hear()
        await client.hear()
        client.close()
        await until(lambda: len(cluster.ends) == 1)
        assert cluster.ends[0].reason == "cancelled"
        await until(lambda: not any(node.specs for node in cluster.world.nodes.values()))

    run_gateway(body, client_silence_s=1.0)


def test_more_requests_than_allowed_are_refused_at_once(run_gateway) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        cluster.pause.set()
        await client.submit()
        assert (await client.hear())["type"] == "Accepted"
        await client.submit(label="another")
        refused = await client.hear()
        assert (refused["type"], refused["code"]) == ("Refused", "overloaded")
        assert refused["retry_after_s"] > 0
        assert "--max-live-requests" in refused["message"]

    run_gateway(body, max_live_requests=1)


def test_prompts_in_flight_are_bounded_by_their_bytes(run_gateway) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        await client.submit("a" * (2 << 20))
        refused = await client.hear()
        assert (refused["type"], refused["code"]) == ("Refused", "overloaded")
        assert "--max-prompt-mib" in refused["message"]

    run_gateway(body, max_prompt_mib=1)


def test_a_gateway_that_does_not_fit_ends_with_the_reason(served_model, make_world) -> None:
    async def main() -> None:
        context = zmq.asyncio.Context()
        cluster = Cluster(context, make_world())
        cluster.refusal = "weights_fingerprint is w in gw and v in p0"
        config = GatewayConfig(model="unused", port=0, http_port=-1, coordinator=cluster.address)
        try:
            await serve(config, served_model, stop=asyncio.Event(), on_ready=print)
        finally:
            await cluster.close()
            context.term()

    with pytest.raises(ValueError, match="weights_fingerprint is w in gw and v in p0"):
        asyncio.run(asyncio.wait_for(main(), 10))


def test_addresses_beyond_loopback_need_consent(served_model) -> None:
    config = GatewayConfig(model="unused", host="0.0.0.0", port=0)
    with pytest.raises(ValueError) as caught:
        asyncio.run(serve(config, served_model, stop=asyncio.Event(), on_ready=print))
    assert "--allow-unauthenticated" in str(caught.value)


def test_what_fails_once_ends_neither_the_gateway_nor_what_comes_with_it(
    run_gateway, monkeypatch
) -> None:
    unsendable = ToCoordinator(PlaceRefused(request_id=bytes(16), attempt=1, code="unavailable",
                                            message="x" * 70_000))  # fmt: skip
    num_calls = {"tick": 0, "submit": 0, "from_coordinator": 0}

    def failing(name: str, prefix: list[ToCoordinator]) -> Callable:
        original = getattr(Ledger, name)

        def call(self, *arguments):
            num_calls[name] += 1
            if num_calls[name] == 1 and not prefix:
                raise RuntimeError(name)
            return [*prefix, *original(self, *arguments)]

        return call

    monkeypatch.setattr(Ledger, "tick", failing("tick", []))
    monkeypatch.setattr(Ledger, "from_coordinator", failing("from_coordinator", []))
    monkeypatch.setattr(Ledger, "submit", failing("submit", [unsendable]))

    async def body(cluster: Cluster, client: Client) -> None:
        await until(lambda: num_calls["tick"] >= 2 and len(cluster.hellos) >= 2)
        await client.submit("def f")
        _, ids, _, done = await client.answer()
        assert (len(ids), done["reason"]) == (8, "length")

    run_gateway(body)
    assert min(num_calls.values()) > 0


def test_requests_carry_predictions_and_leave_lengths_behind(run_gateway, tmp_path) -> None:
    commands = []

    async def body(cluster: Cluster, client: Client) -> None:
        decode = cluster.world.nodes["d0"]
        heed = decode.command

        def watched(message):
            commands.append(message)
            return heed(message)

        decode.command = watched
        await client.submit("def secret words")
        await client.answer()
        await until(lambda: len(cluster.ends) == 1)

    run_gateway(body, record_dir=str(tmp_path))
    spec = next(m for m in commands if isinstance(m, Decode)).spec
    assert (spec.prediction.q50, spec.prediction.q90) == (8, 8)  # nothing is known: max_tokens
    assert 0 <= spec.waited_s < 60
    (file,) = tmp_path.iterdir()
    (record,) = read_records(file)
    assert (record.num_tokens, record.max_tokens, record.is_cut) == (8, 8, True)
    assert b"secret" not in file.read_bytes()
