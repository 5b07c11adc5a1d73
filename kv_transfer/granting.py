"""Who gets pages for a hand-off, and when: strictly the oldest request first. Pure."""

from kv_transfer.actions import OpenGrant, TransferKey
from kv_transfer.arrivals import Arrival, ArrivalTable
from node.growth import Grower
from node.ledger import PageState
from node.page_pool import PagePool
from tandem.layout import KVLayout


class Granting:
    """Claims pages for waiting reserves: the prefix that is cached here, fresh ones for the rest.

    A writer that leaves more than `max_draining_pages` undrained gets nothing new.
    """

    def __init__(
        self, pool: PagePool, layout: KVLayout, *, incarnation: int, max_draining_pages: int
    ) -> None:
        self._pool = pool
        self._layout = layout
        self._max_draining = max_draining_pages
        # Grant ids of different incarnations differ, so nothing of an earlier process matches.
        self._next_grant_id = (incarnation % 2**31) << 32
        self._refused: tuple[TransferKey, int] | None = None  # the oldest, and the pool then

    def open_next(self, table: ArrivalTable, now: float) -> list[Arrival]:
        """Grant what can be granted, the oldest first: small requests do not starve a large one."""
        opened: list[Arrival] = []
        waiting = table.waiting()
        draining = table.num_draining() if waiting else {}
        for arrival in waiting:
            if draining.get(arrival.writer, 0) > self._max_draining:
                continue
            # Matching its hashes takes long, and is asked for after every message.
            look = (arrival.key, self._pool.num_changes)
            if look == self._refused:
                break
            if not self._claim(arrival, now):
                self._refused = look
                break
            table.granted(arrival)
            opened.append(arrival)
        return opened

    def _claim(self, arrival: Arrival, now: float) -> bool:
        num_pages = self._layout.num_pages_for(arrival.num_tokens)
        num_growth = self._layout.num_pages_for(arrival.max_total_tokens) - num_pages
        grower = Grower(arrival.key, arrival.sequence, num_growth)
        claim = self._pool.claim(arrival.page_hashes, num_pages, PageState.GRANTED, grower)
        if claim is None:
            return False
        arrival.open(self._next_grant_id, claim, now)
        self._next_grant_id += 1
        return True


def open_grant(arrival: Arrival) -> OpenGrant:
    """What the bulk thread must know before the writer hears of its grant."""
    return OpenGrant(arrival.grant_id, arrival.writer, arrival.pages, arrival.cached_pages)
