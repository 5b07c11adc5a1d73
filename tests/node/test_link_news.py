"""When heartbeats tell of links: at once after a change, and now and then."""

from node.membership import LINKS_EVERY, Membership
from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity
from tandem.messages.membership import (
    LinkReport,
    NodeHello,
    NodeLoad,
    NodeWelcome,
    PageCounts,
    RoleWeights,
)

MODEL = ModelIdentity(
    served_name="m", weights_fingerprint="w", tokenizer_fingerprint="t", dtype="float32",
    max_model_len=64, vocab_size=9,
)  # fmt: skip
HELLO = NodeHello(
    node_id="n", incarnation=5, control_address="tcp://127.0.0.1:1", num_pages=1, max_num_seqs=1,
    max_num_batched_tokens=1, device="cpu", weights=RoleWeights(prefill=1, decode=1), model=MODEL,
    layout=KVLayout(num_layers=1, num_kv_heads=1, head_dim=8, page_size=16, dtype="float32"),
)  # fmt: skip
LOAD = NodeLoad(
    num_steps=0, step_age_s=0, num_prefill_waiting=0, num_prefill_tokens_waiting=0,
    num_decode_running=0, num_decode_waiting=0, num_transfers=0, num_requests=0, num_tokens_out=0,
    pages=PageCounts(**dict.fromkeys(PageCounts.__struct_fields__, 0)),
)  # fmt: skip
LINK = LinkReport(node_id="d0", transport="zmq", bytes_per_s=1e9, explanation="so")


def test_links_are_told_when_they_change_and_now_and_then() -> None:
    membership = Membership(HELLO)
    membership.handle(
        NodeWelcome(coordinator_incarnation=1, epoch=1, lease_s=3.0, heartbeat_s=0.5), 0.0
    )
    now, told = 0.0, []
    for links in ((), (), (LINK,), *[(LINK,)] * LINKS_EVERY, (), ()):
        now += 0.5
        told.append(membership.due(now, LOAD, draining=False, links=links).links)
    assert told[:4] == [None, None, (LINK,), None]
    assert told.count((LINK,)) == 2  # the second one is for whoever missed the first
    assert told[-2:] == [(), None]
