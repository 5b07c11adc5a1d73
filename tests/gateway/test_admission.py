"""What a gateway refuses, with numbers and advice, and how it completes what it takes."""

import numpy as np
import pytest

from gateway.admission import Offer, Origin, Rejected, admit, check_submit
from tandem.frames import Blob, TokenIds
from tandem.messages.client import ChatMessage, ResumePoint, Submit
from tandem.sampling import GenerationDefaults, SamplingParams

OFFER = Offer(
    model="demo",
    vocab_size=100,
    max_model_len=50,
    defaults=GenerationDefaults(eos_token_ids=(3,), temperature=0.7, top_k=5),
    sla_classes=("interactive", "batch"),
)
ORIGIN = Origin(
    client=b"c", request_id=bytes(16), random_seed=1234, received=1.0, received_unix_s=2.0
)
IDS = TokenIds([1, 2, 3])


def take(submit: Submit, ids: TokenIds = IDS):
    check_submit(submit, OFFER)
    return admit(submit, ids, OFFER, ORIGIN)


def submit(**changes) -> Submit:
    params = SamplingParams(**changes.pop("params", {}))
    return Submit(**{"label": "x", "prompt_ids": IDS, "params": params, **changes})


@pytest.mark.parametrize(
    ("changes", "code", "parts"),
    [
        ({"model": "other"}, "unknown_model", ["demo", "other"]),
        ({"prompt": Blob(b"a")}, "invalid_request", ["2 of", "exactly one"]),
        ({"prompt_ids": None}, "invalid_request", ["0 of", "exactly one"]),
        ({"prompt_ids": TokenIds()}, "invalid_request", ["empty"]),
        ({"prompt_ids": None, "prompt": Blob(b"")}, "invalid_request", ["empty"]),
        ({"sla_class": "gold"}, "unknown_sla_class", ["gold", "interactive, batch"]),
        ({"params": {"temperature": -1.0}}, "invalid_request", ["temperature", "-1.0"]),
        ({"params": {"stop_token_ids": (100,)}}, "invalid_request", ["100"]),
        ({"params": {"max_tokens": 48}}, "context_too_long", ["3 tokens", "48", "51", "50", "47"]),
        ({"params": {"min_tokens": 48}}, "invalid_request", ["min_tokens", "48", "47"]),
    ],
)
def test_what_is_wrong_is_named_with_what_to_do(changes, code, parts) -> None:
    with pytest.raises(Rejected) as caught:
        take(submit(**changes))
    assert caught.value.code == code
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "code", "parts"),
    [
        ([5, 100], "invalid_request", ["100", "0 to 99"]),
        ([-1, 5], "invalid_request", ["-1"]),
        ([1] * 50, "context_too_long", ["50", "49"]),
        ([], "invalid_request", ["empty"]),
    ],
)
def test_prompts_are_checked_by_their_tokens(ids, code, parts) -> None:
    with pytest.raises(Rejected) as caught:
        take(submit(), TokenIds(np.array(ids, dtype=np.int32)))
    assert caught.value.code == code
    for part in parts:
        assert part in str(caught.value)


def test_what_is_left_out_is_filled_in() -> None:
    new = take(submit(params={"top_p": 0.5}))
    params = new.params
    assert (params.max_tokens, params.temperature, params.top_k, params.top_p) == (47, 0.7, 5, 0.5)
    assert (params.min_p, params.repetition_penalty, new.seed) == (0.0, 1.0, 1234)


def test_what_is_given_is_kept() -> None:
    chat = (ChatMessage(role="user", content="hello"),)
    new = take(
        submit(
            prompt_ids=None,
            chat=chat,
            params={"max_tokens": 4, "seed": 0, "temperature": 0.0},
            sla_class="batch",
            priority=3,
            deadline_s=9.0,
        )
    )
    assert (new.seed, new.params.max_tokens, new.params.temperature) == (0, 4, 0.0)
    assert (new.sla_class, new.priority, new.deadline_s) == ("batch", 3, 9.0)
    assert (new.client, new.request_id, new.received_unix_s) == (b"c", bytes(16), 2.0)


def test_what_another_gateway_delivered_goes_along() -> None:
    resume = ResumePoint(output_ids=TokenIds([7, 8]), num_chars=5)
    new = take(submit(params={"max_tokens": 4, "seed": 9}, resume=resume))
    assert (new.delivered, new.num_chars, new.seed) == (TokenIds([7, 8]), 5, 9)
    assert (take(submit()).delivered, take(submit()).num_chars) == (TokenIds(), 0)


@pytest.mark.parametrize(
    ("params", "ids", "words"),
    [
        ({"max_tokens": 4}, [7], "needs the seed"),
        ({"max_tokens": 2, "seed": 1}, [7, 8, 9], "resume has 3 tokens and max_tokens is 2"),
        ({"seed": 1}, [7, 100], "resume.output_ids has the id 100"),
        ({"seed": 1}, [-1], "resume.output_ids has the id -1"),
    ],
)
def test_a_resume_point_that_cannot_be_is_refused(params, ids, words) -> None:
    with pytest.raises(Rejected, match=words) as caught:
        take(submit(params=params, resume=ResumePoint(output_ids=TokenIds(ids), num_chars=0)))
    assert caught.value.code == "invalid_request"


def test_before_the_first_welcome_any_sla_class_may_exist() -> None:
    offer = Offer(model="demo", vocab_size=9, max_model_len=9, defaults=GenerationDefaults())
    check_submit(submit(sla_class="gold"), offer)
    assert admit(submit(sla_class="gold"), IDS, offer, ORIGIN).sla_class == "gold"
