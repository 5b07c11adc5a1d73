"""The ledger of evaluations: one answer each, over lost words, deaths, refusals and silence."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from gateway.actions import ToCoordinator, ToNode
from gateway.admission import Offer, Rejected
from gateway.attempts import ANSWER_TIMEOUT_S, FAIL_OVER_WAIT_S, PLACE_TIMEOUT_S
from gateway.evaluation_request import NewEvaluation, check_asked, read_answer
from gateway.evaluations import EvaluationEnded, EvaluationLedger
from gateway.http.services import EvaluationAsked
from gateway.live import Identity
from tandem.frames import Blob, TokenIds
from tandem.messages.common import NodeRef, SlaTargets
from tandem.messages.evaluation import (
    MAX_LOGPROBS,
    EvaluatePrompt,
    EvaluationDone,
    EvaluationForgotten,
    EvaluationOver,
    EvaluationTaken,
)
from tandem.messages.placement import (
    GatewayWelcome,
    NodeDown,
    Place,
    Placed,
    PlaceRefused,
    RequestEnded,
    RequestEndedAck,
)
from tandem.sampling import GenerationDefaults
from tests.gateway.ledger_world import node_ref

TARGETS = SlaTargets(sla_class="standard", ttft_ms=1000, tpot_ms=100)
P0, P1, P2, P3 = (node_ref(f"p{i}", epoch=i + 1) for i in range(4))
VECTOR = np.array([1.0, 2.0], "<f4")
ID = (1).to_bytes(16, "big")


def asked(**fields: Any) -> EvaluationAsked:
    return EvaluationAsked(**{"task": "embed", "prompt_ids": TokenIds(range(40)), **fields})


def floats(*numbers: float) -> Blob:
    return Blob(np.array(numbers, "<f4").tobytes())


def answer(attempt: int = 1, **fields: Any) -> EvaluationDone:
    return EvaluationDone(
        **{
            "request_id": ID,
            "attempt": attempt,
            "vector": Blob(VECTOR.tobytes()),
            "logprobs": Blob(),
            "top_ids": TokenIds(),
            "top_logprobs": Blob(),
            "started_after_s": 0.25,
            "num_cached_tokens": 16,
            **fields,
        }
    )


@dataclass
class World:
    """A ledger with a clock; what it says by kind."""

    ledger: EvaluationLedger = field(
        default_factory=lambda: EvaluationLedger(Identity("g", 9, "w", ()))
    )
    now: float = 0.0
    to_coordinator: list[Any] = field(default_factory=list)
    to_nodes: list[tuple[str, Any]] = field(default_factory=list)
    ends: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        welcome = GatewayWelcome(
            coordinator_incarnation=1,
            sla_classes=(TARGETS,),
            default_class="standard",
            num_prefill_nodes=4,
            num_decode_nodes=1,
            page_size=16,
            kv_dtype="float32",
        )
        self.say(welcome)

    def _take(self, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case ToCoordinator(message):
                    self.to_coordinator.append(message)
                case ToNode(node, message):
                    self.to_nodes.append((node.node_id, message))
                case EvaluationEnded(request_id, end):
                    assert request_id == ID
                    self.ends.append(end)

    def submit(self, **fields: Any) -> None:
        new = NewEvaluation(
            request_id=ID, asked=asked(**fields), received=self.now, received_unix_s=1e9
        )
        self._take(self.ledger.submit(new, self.now))

    def say(self, message: Any) -> None:
        self._take(self.ledger.from_coordinator(message, self.now))

    def place(self, node: NodeRef, attempt: int = 1) -> None:
        self.say(
            Placed(
                request_id=ID,
                attempt=attempt,
                prefill=None,
                decode=node,
                targets=TARGETS,
                sequence=5,
            )
        )

    def hear(self, node: NodeRef, message: Any) -> None:
        self._take(self.ledger.from_node(node, message, self.now))

    def down(self, node: NodeRef) -> None:
        self.say(NodeDown(node_id=node.node_id, epoch=node.epoch, reason="killed"))

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            self._take(self.ledger.tick(self.now))

    def told(self, node: NodeRef, kind: type) -> list[Any]:
        return [m for name, m in self.to_nodes if name == node.node_id and isinstance(m, kind)]

    def said(self, kind: type) -> list[Any]:
        return [m for m in self.to_coordinator if isinstance(m, kind)]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def running(world: World) -> World:
    """One that p0 has."""
    world.submit()
    world.place(P0)
    world.hear(P0, EvaluationTaken(request_id=ID, attempt=1))
    return world


def test_it_is_placed_computed_reported_and_forgotten(running: World) -> None:
    world = running
    [place] = world.said(Place)
    assert place.is_evaluation
    assert (place.num_prompt_tokens, place.max_output_tokens) == (40, 0)
    assert len(place.prefix_hashes) == 8 * 2, "of the full pages before the last token"
    [command] = world.told(P0, EvaluatePrompt)
    assert (command.spec.task, command.spec.sequence) == ("embed", 5)
    world.now = 0.5
    world.hear(P0, answer())
    assert world.ends == [answer()]
    assert world.told(P0, EvaluationOver) == [EvaluationOver(request_id=ID, attempt=1)]
    [report] = world.said(RequestEnded)
    assert (report.reason, report.is_evaluation, report.sla_attained) == ("stop", True, True)
    assert (report.ttft_ms, report.num_cached_tokens) == (500.0, 16)
    assert report.timeline.prefill_start_s == 0.25
    assert report.timeline.prefill_node == "p0"
    world.pass_time(3)
    assert len(world.told(P0, EvaluationOver)) > 2
    assert len(world.said(RequestEnded)) > 2
    assert world.ledger.owns(ID)
    world.hear(P0, EvaluationForgotten(request_id=ID, attempt=1))
    world.say(RequestEndedAck(request_id=ID))
    assert not world.ledger.owns(ID)
    num_said = len(world.to_nodes) + len(world.to_coordinator)
    world.pass_time(5)
    assert len(world.to_nodes) + len(world.to_coordinator) == num_said
    assert len(world.ledger) == 0


def test_commands_are_repeated_and_a_repeated_answer_is_told_that_it_is_over(
    running: World,
) -> None:
    world = running
    world.pass_time(4)
    assert len(world.told(P0, EvaluatePrompt)) >= 3
    world.hear(P0, answer())
    world.hear(P0, answer())
    assert len(world.ends) == 1
    assert len(world.told(P0, EvaluationOver)) == 2


def test_a_cached_prefix_is_named_only_as_far_as_nothing_is_asked_of_it(world: World) -> None:
    num_pages = []
    for fields in (
        {"task": "score", "first_scored": 17},
        {"task": "score"},
        {"pooling": "mean"},
    ):
        fresh = World()
        fresh.submit(**fields)
        num_pages.append(len(fresh.said(Place)[0].prefix_hashes) // 8)
    assert num_pages == [1, 0, 0]


def test_a_death_is_followed_by_another_attempt_elsewhere(running: World) -> None:
    world = running
    world.down(P0)
    assert world.told(P0, EvaluationOver) == []
    place = world.said(Place)[-1]
    assert (place.attempt, place.avoid, place.num_deaths) == (2, ("p0",), 1)
    world.place(P0, attempt=2)  # the coordinator had not heard of it
    assert world.said(Place)[-1].attempt == 3
    world.place(P1, attempt=3)
    world.hear(P0, answer())
    assert world.ends == []
    world.hear(P1, answer(3))
    assert world.ends == [answer(3)]
    assert world.said(RequestEnded)[0].timeline.num_attempts == 3


def test_three_failures_are_the_end(running: World) -> None:
    world = running
    for number, node in enumerate((P0, P1, P2), start=1):
        if number > 1:
            world.pass_time(2)
            world.place(node, attempt=number)
        world.hear(node, answer(number, code="internal", message=f"broken {number}"))
    [end] = world.ends
    assert (end.reason, end.code) == ("failed", "internal")
    assert all(f"broken {n}" in end.message for n in (1, 2, 3))
    assert world.said(RequestEnded)[0].reason == "failed"


def test_what_would_fail_anywhere_is_not_tried_again(running: World) -> None:
    running.hear(P0, answer(code="invalid_request", message="no such id"))
    assert running.ends[0].code == "invalid_request"


def test_a_closed_role_is_no_failure(running: World) -> None:
    world = running
    for number in range(1, 6):
        world.hear(P0, answer(number, code="not_serving", message="closed"))
        world.pass_time(3)
        assert world.said(Place)[-1].attempt == number + 1
        world.place(P0, attempt=number + 1)
    world.hear(P0, answer(6))
    assert world.ends == [answer(6)]


def test_a_node_that_does_not_answer_is_given_up(world: World) -> None:
    world.submit()
    world.place(P0)
    world.pass_time(ANSWER_TIMEOUT_S + 1)
    assert world.said(Place)[-1].avoid == ("p0",)
    assert world.told(P0, EvaluationOver)
    assert world.ends == []


def test_an_answer_of_another_shape_is_a_failure(running: World) -> None:
    running.hear(P0, answer(vector=Blob(b"123")))
    assert running.ends == []
    running.pass_time(1)
    assert running.said(Place)[-1].attempt == 2


@pytest.mark.parametrize("asked_first", [True, False])
def test_refusals_end_a_new_one_and_not_one_that_lost_its_node(
    world: World, asked_first: bool
) -> None:
    world.submit()
    attempt = 1
    if not asked_first:
        world.place(P0)
        world.down(P0)
        attempt = 2
    refused = PlaceRefused(
        request_id=ID, attempt=attempt, code="overloaded", message="full", retry_after_s=3.0
    )
    world.say(refused)
    if not asked_first:
        assert world.ends == []
        world.pass_time(5)
        assert len(world.said(Place)) > 3, "asked again"
        world.pass_time(FAIL_OVER_WAIT_S)
    [end] = world.ends
    assert (end.code, end.retry_after_s) == ("overloaded", 3.0)


def test_without_a_coordinator_it_fails_in_the_end(world: World) -> None:
    world.submit()
    world.pass_time(PLACE_TIMEOUT_S + 1)
    assert world.ends[0].code == "unavailable"


def test_a_deadline_ends_it_wherever_it_is(world: World) -> None:
    world.submit(deadline_s=1.0)
    world.place(P0)
    assert world.told(P0, EvaluatePrompt)[0].spec.deadline_s == 1.0
    world.pass_time(1.2)
    assert world.ends[0].code == "deadline_exceeded"
    assert world.told(P0, EvaluationOver)


def test_whoever_hangs_up_frees_its_node(running: World) -> None:
    running._take(running.ledger.cancel(ID, running.now))
    assert running.ends[0].reason == "cancelled"
    assert running.told(P0, EvaluationOver)
    assert running.said(RequestEnded)[0].reason == "cancelled"
    running.pass_time(70)
    num_said = len(running.to_nodes)
    running.pass_time(10)
    assert len(running.to_nodes) == num_said, "a node that never answers is left alone"


def test_a_gateway_that_stops_leaves_nobody_waiting(running: World) -> None:
    running._take(running.ledger.end_all(running.now))
    assert running.ends[0].code == "unavailable"


def offer(**fields: Any) -> Offer:
    return Offer(
        **{
            "model": "demo",
            "vocab_size": 100,
            "max_model_len": 50,
            "defaults": GenerationDefaults(),
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("fields", "num_labels", "text"),
    [
        ({"prompt_ids": TokenIds()}, 0, "empty"),
        ({"prompt_ids": TokenIds([100])}, 0, "0 to 99"),
        ({"prompt_ids": TokenIds([5] * 51)}, 0, "context is 50"),
        ({"task": "classify"}, 0, "no classification head"),
        ({"task": "score"}, 2, "no token probabilities"),
        ({"task": "score", "num_top": 21}, 0, "from 0 to 20"),
        ({"task": "score", "first_scored": 0}, 0, "second"),
    ],
)
def test_what_this_model_cannot_do_is_refused(
    fields: dict[str, Any], num_labels: int, text: str
) -> None:
    with pytest.raises(Rejected, match=text):
        check_asked(asked(**fields), offer(num_labels=num_labels))


def test_an_answer_over_the_wires_limits_is_refused_before_it_is_computed() -> None:
    long = asked(task="score", prompt_ids=TokenIds([5] * (MAX_LOGPROBS // 21 + 2)), num_top=20)
    with pytest.raises(Rejected, match="33333 tokens at once"):
        check_asked(long, offer(max_model_len=10**6))
    check_asked(long.__class__("score", long.prompt_ids, num_top=19), offer(max_model_len=10**6))


def test_logprobs_are_read_as_they_were_packed() -> None:
    scored = asked(task="score", prompt_ids=TokenIds([1, 2, 3]), num_top=2)
    done = answer(
        vector=Blob(),
        logprobs=floats(-1, -2),
        top_ids=TokenIds([7, 8, 9, 10]),
        top_logprobs=floats(-0.5, -1, -1.5, -2),
    )
    evaluated = read_answer(done, scored)
    assert [(each.logprob, each.top) for each in evaluated.logprobs] == [
        (-1.0, ((7, -0.5), (8, -1.0))),
        (-2.0, ((9, -1.5), (10, -2.0))),
    ]
    assert evaluated.num_prompt_tokens == 3
