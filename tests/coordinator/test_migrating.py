"""The coordinator wishes requests away from decode nodes that are short of pages."""

from tandem.messages.placement import MoveRequest


def crowded(make_cluster, migrate: str):
    """Six requests on d0, whose pool is full, and d1 that has just come."""
    cluster = make_cluster(migrate=migrate, early_rejection="off", balance="off")
    cluster.greet()
    cluster.join("p0", "prefill")
    cluster.join("d0", "decode")
    for number in range(1, 7):
        cluster.place(number, num_prompt_tokens=100 + 10 * number, max_output_tokens=40)
    cluster.join("d1", "decode", num_pages=64)
    return cluster


def beat(cluster) -> None:
    cluster.beat("p0")
    cluster.beat("d0", used=60, num_decode_running=6)
    cluster.beat("d1")
    cluster.greet()


def wishes(cluster, seconds: int) -> list[MoveRequest]:
    sent = []
    for _ in range(seconds):
        beat(cluster)
        sent += [m for peer, m in cluster.pass_time(1.0) if peer == "gw"]
    return [m for m in sent if isinstance(m, MoveRequest)]


def test_the_shortest_request_is_wished_elsewhere_and_then_left_alone(make_cluster) -> None:
    cluster = crowded(make_cluster, "on")
    moved = wishes(cluster, 3)
    assert moved[0] == MoveRequest(request_id=(1).to_bytes(16, "big"), attempt=1)
    assert len({m.request_id for m in moved}) == len(moved), "each once in a while"
    assert any("should leave d0" in note for note in cluster.notes)
    assert cluster.status().decisions[0].kind == "move"


def test_nobody_is_moved_unless_that_is_wanted(make_cluster) -> None:
    assert wishes(crowded(make_cluster, "off"), 5) == []


def test_with_room_everywhere_nobody_moves(make_cluster) -> None:
    cluster = crowded(make_cluster, "on")
    for number in range(1, 5):
        cluster.end(number)
    cluster.beat("d0", used=10, num_decode_running=2)
    cluster.beat("d1")
    assert [m for _, m in cluster.pass_time(2.0) if isinstance(m, MoveRequest)] == []
