"""Where a request's time went, also where it lost its nodes on the way."""

import math

from tandem.messages.common import Timeline
from tandem.stages import stages_of

USUAL = {
    "received_unix_s": 0.0,
    "placed_s": 0.1,
    "prefill_start_s": 0.2,
    "first_token_s": 0.5,
    "transfer_end_s": 0.6,
    "decode_start_s": 0.7,
    "finished_s": 2.0,
}


def ends(**fields: object) -> dict[str, float]:
    return {stage.name: stage.ends_s for stage in stages_of(Timeline(**{**USUAL, **fields}))}


def test_the_stages_of_an_undisturbed_request() -> None:
    assert ends() == {
        "queue": 0.2,
        "prefill": 0.5,
        "transfer": 0.6,
        "decode_admission": 0.7,
        "decode": 2.0,
    }
    assert ends(first_token_s=None, transfer_end_s=None) == {"queue": 0.2}


def test_a_fail_over_after_token_0_is_no_queue_time() -> None:
    again = {"prefill_start_s": 1.2, "transfer_end_s": 1.4, "decode_start_s": 1.5}
    assert ends(**again, num_attempts=2) == {"queue": 0.1, "prefill": 0.5, "decode": 2.0}
    whole = Timeline(**(USUAL | again))
    assert math.fsum(stage.seconds for stage in stages_of(whole)) == 2.0


def test_a_fail_over_before_token_0_is_in_the_queue() -> None:
    later = {"prefill_start_s": 0.4, "num_attempts": 2}
    assert list(ends(**later).items())[:2] == [("queue", 0.4), ("prefill", 0.5)]
