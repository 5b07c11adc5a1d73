"""A reserve that waits costs other messages nothing: it is looked at when pages may be there."""

from typing import Any

from kv_transfer.actions import OpenGrant
from node.ledger import PageState
from tandem.frames import Blob
from tandem.messages.handoff import Drained, Reserve

WRITER = b"node/p0/1"


def reserve(request: bytes, num_tokens: int) -> Reserve:
    return Reserve(
        request_id=request * 16,
        attempt=1,
        num_tokens=num_tokens,
        max_total_tokens=num_tokens,
        sequence=request[0],
        deadline_s=None,
        page_hashes=Blob(),
        gateway=b"g",
        owner_incarnation=5,
    )


def test_a_waiting_reserve_is_looked_at_again_only_when_something_changed(
    make_owner: Any, monkeypatch: Any
) -> None:
    owner = make_owner(num_pages=8)
    pool = owner.pool
    num_claims = 0
    claim = pool.claim

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal num_claims
        num_claims += 1
        return claim(*args, **options)

    held = claim([], 6, PageState.ACTIVE)
    monkeypatch.setattr(pool, "claim", counted)
    owner.hear(reserve(b"b", 20), writer=WRITER)
    assert num_claims == 1
    for _ in range(10):
        owner.hear(Drained(request_id=b"z" * 16, attempt=1), writer=WRITER)
    assert num_claims == 1
    owner.hear(reserve(b"a", 20), writer=WRITER)  # an older one: it is first now
    assert num_claims == 2
    pool.release(held.fresh)
    actions = owner.hear(Drained(request_id=b"z" * 16, attempt=1), writer=WRITER)
    assert [a for a in actions if isinstance(a, OpenGrant)]
