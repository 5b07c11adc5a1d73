"""Reading over zmq without a socket: what is asked for, and which answers are believed."""

import msgspec
import numpy as np
import pytest
import zmq

from kv_transfer.actions import PagesRead, ReadFailed, ReadPages
from kv_transfer.checksum import PageArray, read_sum
from kv_transfer.zmq_frames import CHUNK_BYTES, MAX_READ_PAGES, PageRead, ReadAnswer
from kv_transfer.zmq_reads import Reads
from tandem.messages.common import NodeRef

OWNER = NodeRef(node_id="d0", incarnation=1, epoch=1, control_address="tcp://d0")
KEY, OTHER_KEY = (b"k" * 16, 1), (b"o" * 16, 1)


class Reading:
    """Pools of an owner and of a reader of `page_bytes`."""

    def __init__(self, page_bytes: int, num_pages: int = 300) -> None:
        rng = np.random.default_rng(3)
        self.theirs: PageArray = rng.integers(0, 256, (num_pages, page_bytes), dtype=np.uint8)
        self.own: PageArray = np.zeros((num_pages, page_bytes), np.uint8)
        self.reads = Reads(self.own)

    def start(self, num_pages: int, key=KEY) -> None:
        indices = tuple(range(num_pages))
        self.reads.add(ReadPages(key, OWNER, 7, indices[::-1], indices), 0.0)

    def ask_all(self) -> list[PageRead]:
        asked = []
        while (request := self.reads.next_request()) is not None:
            self.reads.asked(request)
            asked.append(request)
        return asked

    def part(self, request: PageRead) -> PageArray:
        """What the owner sends."""
        if self.theirs.shape[1] > CHUNK_BYTES:
            end = request.offset + CHUNK_BYTES
            return self.theirs[request.pages[0], request.offset : end].copy()
        return self.theirs[list(request.pages)].reshape(-1)

    def answer(self, request: PageRead, part: PageArray | None = None, **changes):
        honest = self.part(request)
        checksum = read_sum(request.grant_id, request.pages, request.offset, honest)
        answer = ReadAnswer(request.ticket, checksum, None)
        payload = zmq.Frame((honest if part is None else part).tobytes())
        return self.reads.take(msgspec.structs.replace(answer, **changes), payload)


@pytest.mark.parametrize(
    ("page_bytes", "num_pages", "num_parts"),
    [(64, 300, 3), (4096, 300, 3), (CHUNK_BYTES, 3, 3), (CHUNK_BYTES * 5 // 2, 2, 6)],
)
def test_all_parts_in_any_order(page_bytes: int, num_pages: int, num_parts: int) -> None:
    reading = Reading(page_bytes, num_pages)
    reading.start(num_pages)
    asked = reading.ask_all()
    assert len(asked) == num_parts
    assert all(len(request.pages) <= MAX_READ_PAGES for request in asked)
    events = [reading.answer(request) for request in reversed(asked)]
    assert events[:-1] == [None] * (num_parts - 1)
    assert isinstance(events[-1], PagesRead)
    assert np.array_equal(reading.own, reading.theirs[::-1])
    assert reading.reads.is_idle
    assert reading.reads.num_asked == 0


def spoil(part: PageArray, how: str) -> PageArray:
    if how == "flipped":
        part = part.copy()
        part[100] ^= 1
    elif how == "truncated":
        part = part[:-1]
    else:
        part = np.append(part, np.uint8(0))
    return part


@pytest.mark.parametrize("how", ["flipped", "truncated", "extra byte"])
def test_w19_wrong_bytes_fail_the_read_and_change_no_page(how: str) -> None:
    reading = Reading(4096)
    reading.start(200)
    first, second = reading.ask_all()
    event = reading.answer(first, spoil(reading.part(first), how))
    assert isinstance(event, ReadFailed)
    assert "differs" in event.reason or "were asked for" in event.reason
    assert reading.answer(second) is None, "the read is over"
    assert not reading.own.any()
    assert reading.reads.num_asked == 0


def test_w19_right_bytes_of_another_request_are_not_believed() -> None:
    reading = Reading(4096)
    reading.start(200)
    first, second = reading.ask_all()
    part = reading.part(second)
    checksum = read_sum(second.grant_id, second.pages, 0, part)
    assert isinstance(reading.answer(first, part, checksum=checksum), ReadFailed)


def test_w19_right_bytes_of_another_grant_are_not_believed() -> None:
    reading = Reading(4096)
    reading.start(1)
    (request,) = reading.ask_all()
    checksum = read_sum(8, request.pages, 0, reading.part(request))
    assert isinstance(reading.answer(request, checksum=checksum), ReadFailed)


def test_a_refusal_ends_the_read_with_its_reason() -> None:
    reading = Reading(4096)
    reading.start(1)
    (request,) = reading.ask_all()
    failed = reading.reads.take(ReadAnswer(request.ticket, None, "no such grant"), None)
    assert failed == ReadFailed(KEY, "the page owner refused: no such grant")


def test_unknown_and_repeated_answers_are_dropped() -> None:
    reading = Reading(4096)
    reading.start(200)
    first, second = reading.ask_all()
    assert reading.answer(first) is None
    assert reading.answer(first) is None
    assert reading.answer(second, ticket=99) is None
    assert isinstance(reading.answer(second), PagesRead)


def test_a_stop_ends_one_transfer_and_leaves_the_other() -> None:
    reading = Reading(4096)
    reading.start(1)
    reading.start(1, OTHER_KEY)
    first, second = reading.ask_all()
    assert reading.reads.stop(KEY, "stopped") == [ReadFailed(KEY, "stopped")]
    assert reading.answer(first) is None
    assert not reading.own.any()
    assert isinstance(reading.answer(second), PagesRead)
    assert reading.reads.stop(None, "closed") == []
