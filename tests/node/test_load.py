"""What a node says of its pages and hand-offs."""

from types import SimpleNamespace


def test_hand_offs_and_their_bytes_are_counted_where_they_were_sent(pair: SimpleNamespace) -> None:
    world = pair.World()
    for n, (num_prompt, num_output) in enumerate([(16, 4), (40, 5), (100, 3)]):
        world.submit(n, num_prompt, num_output)
    world.run()
    sent, taken = world.p.core.load(0.0), world.d.core.load(0.0)
    layout = world.p.state.identity.layout
    num_pages = sum(-(-num // layout.page_size) for num in (16, 40, 100))
    assert (sent.num_transfers_done, sent.num_transfers_failed) == (3, 0)
    assert sent.transfer_bytes == num_pages * layout.page_bytes
    assert (taken.num_transfers_done, taken.transfer_bytes) == (0, 0)


def test_a_prompt_that_ends_with_its_first_token_is_no_hand_off(pair: SimpleNamespace) -> None:
    world = pair.World()
    world.submit(1, 40, 1)
    world.run()
    assert world.p.core.load(0.0).num_transfers_done == 0


def test_a_hand_off_that_is_not_verified_has_failed(pair: SimpleNamespace) -> None:
    world = pair.World()
    world.verify_error = "a checksum does not match"
    world.submit(1, 100, 30)
    world.run()
    load = world.p.core.load(0.0)
    assert (load.num_transfers_done, load.num_transfers_failed, load.transfer_bytes) == (0, 1, 0)


def test_residents_hold_pages_for_the_tokens_that_they_have(pair: SimpleNamespace) -> None:
    world = pair.World()
    layout = world.d.state.identity.layout
    world.submit(1, 40, 30)
    world.run_until(lambda: world.d.core.load(0.0).num_decode_running)
    load = world.d.core.load(0.0)
    assert 40 <= load.num_held_tokens <= 70
    assert load.num_held_pages == -(-(load.num_held_tokens + 1) // layout.page_size)
    world.run()
    load = world.d.core.load(0.0)
    assert (load.num_held_tokens, load.num_held_pages) == (0, 0)
    assert load.pages.cached > 0, "they are cached, and nobody's"
