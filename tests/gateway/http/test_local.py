"""Clients of the ledger inside the gateway: a bounded queue each, that ends with its reader."""

import asyncio

import pytest

from gateway.http.local import MAX_WAITING_BYTES, LocalClients
from tandem.messages.client import Refused, Submit
from tests.gateway.session_desk import accepted, done, output, request_id

SUBMIT = Submit(label="x")


class Ledger:
    """Takes requests and cancels; `clients` are the identities, in order."""

    def __init__(self) -> None:
        self.clients: list[bytes] = []
        self.cancelled: list[tuple[bytes, bytes]] = []
        self.local = LocalClients(self.take, self.cancel)

    def take(self, client: bytes, submit: Submit, request_id: bytes | None) -> None:
        self.clients.append(client)

    def cancel(self, client: bytes, request: bytes) -> None:
        self.cancelled.append((client, request))
        self.local.tell(client, done(0, reason="cancelled"))


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def test_words_come_in_order_and_wake_a_reader(ledger: Ledger) -> None:
    async def main() -> None:
        stream = ledger.local.open(SUBMIT, "client/alice")
        (client,) = ledger.clients
        assert ledger.local.owns(client)
        assert ledger.local.key_of(client) == "client/alice"
        reader = asyncio.create_task(stream.next())
        await asyncio.sleep(0)
        words = [accepted(), output(0), output(1), done(2)]
        for word in words:
            ledger.local.tell(client, word)
        assert [await reader, *[await stream.next() for _ in words[1:]]] == words
        assert len(ledger.local) == 0
        assert ledger.local.key_of(client) is None
        stream.cancel()
        assert not ledger.cancelled, "it was over"

    asyncio.run(main())


def test_identities_are_new_and_nobody_elses(ledger: Ledger) -> None:
    for _ in range(3):
        ledger.local.open(SUBMIT, None)
    assert len(set(ledger.clients)) == 3
    assert not ledger.local.owns(b"client/alice")
    assert not LocalClients(ledger.take, ledger.cancel).owns(ledger.clients[0])


def test_a_refusal_ends_a_stream(ledger: Ledger) -> None:
    async def main() -> None:
        stream = ledger.local.open(SUBMIT, None)
        refused = Refused(label="x", code="overloaded", message="later")
        ledger.local.tell(ledger.clients[0], refused)
        assert await stream.next() == refused
        stream.cancel()
        assert not ledger.cancelled
        assert len(ledger.local) == 0

    asyncio.run(main())


def test_a_reader_that_goes_away_cancels_once(ledger: Ledger) -> None:
    stream = ledger.local.open(SUBMIT, None)
    client = ledger.clients[0]
    stream.cancel()
    assert not ledger.cancelled, "the ledger does not have it yet"
    ledger.local.tell(client, accepted())
    assert ledger.cancelled == [(client, request_id(1))]
    stream.cancel()
    assert len(ledger.cancelled) == 1
    assert len(ledger.local) == 0
    ledger.local.tell(client, output(0))  # late words are nobody's


def test_a_reader_that_stays_behind_is_cut(ledger: Ledger) -> None:
    async def main() -> None:
        stream = ledger.local.open(SUBMIT, None)
        client = ledger.clients[0]
        ledger.local.tell(client, accepted())
        num_told = 0
        while not ledger.cancelled:
            ledger.local.tell(client, output(num_told, text="x" * 10_000))
            num_told += 1
        assert num_told <= MAX_WAITING_BYTES // 10_000
        last = await stream.next()
        assert last.reason == "cancelled"
        assert len(ledger.local) == 0

    asyncio.run(main())


def test_a_reader_that_reads_is_never_cut(ledger: Ledger) -> None:
    async def main() -> None:
        stream = ledger.local.open(SUBMIT, None)
        ledger.local.tell(ledger.clients[0], accepted())
        await stream.next()
        for index in range(300):
            ledger.local.tell(ledger.clients[0], output(index, text="x" * 10_000))
            await stream.next()
        assert not ledger.cancelled

    asyncio.run(main())


def test_a_reader_may_be_cancelled_while_it_waits(ledger: Ledger) -> None:
    async def main() -> None:
        stream = ledger.local.open(SUBMIT, None)
        reader = asyncio.create_task(stream.next())
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        ledger.local.tell(ledger.clients[0], accepted())
        assert await stream.next() == accepted()

    asyncio.run(main())
