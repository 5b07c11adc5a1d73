"""A draining node leaves when it is known to drain and stays idle, or when its time is over."""

from node.drain import QUIET_S, REPORT_S, Drain


def test_an_idle_node_leaves_after_a_quiet_moment() -> None:
    drain = Drain(10.0, 60.0)
    assert not drain.is_over(10.0, is_idle=True, is_known=False)
    assert not drain.is_over(11.0, is_idle=True, is_known=True)
    assert not drain.is_over(11.0 + QUIET_S / 2, is_idle=True, is_known=True)
    assert drain.is_over(11.1 + QUIET_S, is_idle=True, is_known=True)


def test_a_request_that_was_on_its_way_is_waited_for() -> None:
    drain = Drain(0.0, 60.0)
    drain.is_over(0.0, is_idle=True, is_known=True)
    assert not drain.is_over(QUIET_S, is_idle=False, is_known=True)
    assert not drain.is_over(5.0, is_idle=True, is_known=True)
    assert drain.is_over(5.1 + QUIET_S, is_idle=True, is_known=True)


def test_patience_ends() -> None:
    drain = Drain(0.0, 2.0)
    assert not drain.is_over(1.9, is_idle=False, is_known=True)
    assert drain.is_over(2.0, is_idle=False, is_known=True)


def test_what_is_left_is_said_at_once_and_every_few_seconds() -> None:
    drain = Drain(0.0, 60.0)
    times = [n / 10 for n in range(121) if drain.is_report_due(n / 10)]
    assert times == [0.0, REPORT_S, 2 * REPORT_S]
