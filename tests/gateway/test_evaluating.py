"""`Evaluations`: answers and errors for who waits, room that is freed, messages told apart."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from gateway.admission import Offer, Rejected
from gateway.evaluating import Entered, Evaluations
from gateway.evaluations import EvaluationLedger
from gateway.http.errors import ApiError
from gateway.http.services import Evaluated, EvaluationAsked
from gateway.live import Identity
from tandem.frames import Blob, TokenIds
from tandem.messages.common import SlaTargets
from tandem.messages.evaluation import EvaluatePrompt, EvaluationDone, EvaluationOver
from tandem.messages.placement import NodeDown, Place, Placed, PlaceRefused
from tandem.sampling import GenerationDefaults
from tests.gateway.ledger_world import node_ref

NODE = node_ref("p0", epoch=1)
OFFER = Offer("demo", 100, 50, GenerationDefaults())
ASKED = EvaluationAsked("embed", TokenIds([1, 2, 3]))


class World:
    """Evaluations whose node and coordinator are played by `answer`."""

    def __init__(self, answer: Callable[["World", Any], None]) -> None:
        self.room: set[bytes] = set()
        self.said: list[Any] = []
        self.outcomes: list[tuple[str, str]] = []
        self._answer = answer
        self.evaluations = Evaluations(
            EvaluationLedger(Identity("g", 9, "w", ())),
            offer=lambda: OFFER,
            enter=self._enter,
            leave=self.room.discard,
            to_node=lambda node, message: self._heard(message),
            to_coordinator=self._heard,
            ended=lambda task, outcome: self.outcomes.append((task, outcome)),
        )

    def _enter(self, request_id: bytes, asked: EvaluationAsked, key: str | None) -> Entered:
        if key == "client/poor":
            raise Rejected("rate_limited", "too many", 2.0)
        self.room.add(request_id)
        return Entered("mine", 2.0, "batch")

    def _heard(self, message: msgspec.Struct) -> None:
        self.said.append(message)
        asyncio.get_running_loop().call_soon(self._answer, self, message)

    def run(self, asked: EvaluationAsked = ASKED, key: str | None = None) -> Evaluated:
        return asyncio.run(self.evaluations(asked, key=key))


def placed(place: Place) -> Placed:
    return Placed(
        request_id=place.request_id,
        attempt=place.attempt,
        prefill=None,
        decode=NODE,
        targets=SlaTargets(sla_class="batch", ttft_ms=1e3, tpot_ms=1e2),
        sequence=1,
    )


def computing(world: World, message: Any) -> None:
    match message:
        case Place():
            assert world.evaluations.from_coordinator(placed(message), 0.0)
        case EvaluatePrompt(spec=spec):
            done = EvaluationDone(
                request_id=spec.request_id,
                attempt=spec.attempt,
                vector=Blob(np.array([1, 2], "<f4").tobytes()),
                logprobs=Blob(),
                top_ids=TokenIds(),
                top_logprobs=Blob(),
            )
            assert world.evaluations.from_node(NODE, done, 0.0)


def refusing(world: World, message: Any) -> None:
    if isinstance(message, Place):
        refused = PlaceRefused(
            request_id=message.request_id,
            attempt=1,
            code="overloaded",
            message="full",
            retry_after_s=4.0,
        )
        world.evaluations.from_coordinator(refused, 0.0)


def test_an_answer_comes_back_and_the_room_is_free() -> None:
    world = World(computing)
    evaluated = world.run()
    assert evaluated.vector is not None
    assert evaluated.vector.tolist() == [1.0, 2.0]
    [place] = [each for each in world.said if isinstance(each, Place)]
    assert (place.tenant, place.tenant_weight, place.sla_class) == ("mine", 2.0, "batch")
    assert world.room == set()
    assert len(world.evaluations) == 0
    assert world.outcomes == [("embed", "ok")]


@pytest.mark.parametrize(
    ("asked", "key", "status"),
    [
        (ASKED, None, 429),
        (ASKED, "client/poor", 429),
        (EvaluationAsked("embed", TokenIds([100])), None, 400),
        (EvaluationAsked("classify", TokenIds([1])), None, 400),
    ],
)
def test_errors_are_the_callers_to_see(
    asked: EvaluationAsked, key: str | None, status: int
) -> None:
    world = World(refusing)
    with pytest.raises(ApiError) as failed:
        world.run(asked, key)
    assert failed.value.status == status
    assert world.outcomes == [(asked.task, failed.value.code)]
    assert world.room == set()


def test_whoever_hangs_up_frees_node_and_room() -> None:
    world = World(lambda world, message: None)

    async def hang_up() -> None:
        task = asyncio.create_task(world.evaluations(ASKED, key=None))
        await asyncio.sleep(0)
        [place] = world.said
        world.evaluations.from_coordinator(placed(place), 0.0)
        assert world.evaluations.nodes == (NODE,)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(hang_up())
    assert any(isinstance(each, EvaluationOver) for each in world.said)
    assert world.room == set()


def test_what_is_nobodys_here_is_passed_on() -> None:
    world = World(computing)
    place = Place(
        gateway_id="g",
        incarnation=9,
        request_id=bytes(16),
        attempt=1,
        num_prompt_tokens=1,
        num_output_tokens=0,
        max_output_tokens=1,
        sla_class=None,
        ttft_ms=None,
        tpot_ms=None,
        tenant="t",
        priority=0,
        prefix_hashes=Blob(),
    )
    assert not world.evaluations.from_coordinator(placed(place), 0.0)
    assert not world.evaluations.from_coordinator(
        NodeDown(node_id="p0", epoch=1, reason="killed"), 0.0
    )
    assert not world.evaluations.from_node(NODE, place, 0.0)


def test_a_gateway_that_stops_tells_who_waits() -> None:
    world = World(lambda world, message: world.evaluations.end_all(0.0))
    with pytest.raises(ApiError, match="stops"):
        world.run()
