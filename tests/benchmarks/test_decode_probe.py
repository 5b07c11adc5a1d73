"""The probe times steps of both runners; on the CPU, where nothing is captured."""

import pytest

from benchmarks.decode_probe import DecodeProbe
from tests.engine.resident_world import CONFIG


def test_both_runners_are_timed() -> None:
    probe = DecodeProbe(CONFIG, num_pages=60, max_context=20, device="cpu", dtype="float32")
    for with_graphs in (False, True):
        times = probe.decode_step_times(4, 20, with_graphs=with_graphs)
        assert 0 < times.host_s < 1 and 0 < times.device_s < 1


def test_more_than_the_pool_holds_is_refused() -> None:
    probe = DecodeProbe(CONFIG, num_pages=20, max_context=20, device="cpu", dtype="float32")
    with pytest.raises(ValueError, match="need 24 pages, the probe has 20"):
        probe.decode_step_times(4, 20, with_graphs=True)
