"""Evaluations on a whole node: answers, pages, turns, repeated and late commands."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from node.actions import NodeAction, Reply
from node.core import FromPeer, GatewaySilent, RolesChanged
from node.fake_runner import fake_logprob, fake_vector
from prefill_node import evaluations
from tandem.frames import TokenIds
from tandem.messages.common import NodeRef
from tandem.messages.evaluation import (
    EvaluatePrompt,
    EvaluationDone,
    EvaluationForgotten,
    EvaluationOver,
    EvaluationSpec,
    EvaluationTaken,
)
from tandem.messages.membership import RoleWeights
from tandem.messages.serving import Decode, Prefill, RequestSpec
from tandem.sampling import SamplingParams
from tests.node.node_world import GATEWAY, TARGETS, prompt
from tests.node.whole_node import VOCAB, Node


def command(n: int, num_tokens: int, task: str = "embed", **fields: Any) -> EvaluatePrompt:
    fields = {"attempt": 1, "priority": 0, "prompt_ids": TokenIds(prompt(n, num_tokens))} | fields
    spec = EvaluationSpec(
        request_id=n.to_bytes(16, "big"),
        task=task,
        tenant="default",
        targets=TARGETS,
        deadline_s=None,
        sequence=n,
        **fields,
    )
    return EvaluatePrompt(spec=spec)


def over(n: int, attempt: int = 1) -> EvaluationOver:
    return EvaluationOver(request_id=n.to_bytes(16, "big"), attempt=attempt)


class World:
    """One node and what it says; a step takes a second."""

    def __init__(self, num_pages: int = 40, **options: Any) -> None:
        self.node = Node("p0", num_pages, **options)
        self.now = 0.0
        self.said: list[Any] = []
        self.chunks: list[list[tuple[int, int]]] = []  # of each step: request and tokens

    def hear(self, message: Any, peer: bytes = GATEWAY) -> list[Any]:
        """What the node answers at once."""
        return self._note(self.node.core.handle(FromPeer(peer, message), self.now))

    def _note(self, actions: list[NodeAction]) -> list[Any]:
        words = [a.message for a in actions if isinstance(a, Reply)]
        self.said += words
        return words

    def step(self) -> bool:
        """One step; False where there was nothing to compute."""
        core = self.node.core
        self._note(core.tick(self.now))
        step = core.plan(self.now)
        self.now += 1.0
        if step is None:
            return False
        keys = [(int.from_bytes(key[0], "big"), num) for key, num in step.plan.prefill]
        self.chunks.append(keys)
        self._note(core.computed(step, self.node.runner.run(step.batch), self.now))
        return True

    def run(self) -> None:
        while self.step():
            pass

    def done(self, n: int) -> EvaluationDone:
        """The one answer to a command."""
        answers = [
            word
            for word in self.said
            if isinstance(word, EvaluationDone) and word.request_id == n.to_bytes(16, "big")
        ]
        assert len(answers) == 1
        return answers[0]

    @property
    def num_busy_pages(self) -> int:
        counts = self.node.ledger.counts()
        return self.node.ledger.num_pages - counts.free - counts.cached


def floats(blob: Any) -> list[float]:
    return np.frombuffer(blob.data, "<f4").tolist()


def test_every_task_is_answered_over_several_chunks() -> None:
    world = World()
    history = np.array(prompt(1, 100), np.int32)
    for n, (task, fields) in enumerate(
        [("embed", {}), ("embed", {"pooling": "mean"}), ("score", {"num_top": 2})], start=1
    ):
        ids = {"prompt_ids": TokenIds(history)}
        assert world.hear(command(n, 100, task, **fields, **ids)) == [
            EvaluationTaken(request_id=n.to_bytes(16, "big"), attempt=1)
        ]
    world.run()
    assert floats(world.done(1).vector) == fake_vector(history).tolist()
    assert floats(world.done(2).vector) == [np.float32(history.mean())] * 4
    expected = [np.float32(fake_logprob(history[:i], int(history[i]))) for i in range(1, 100)]
    assert floats(world.done(3).logprobs) == expected
    assert floats(world.done(3).top_logprobs) == list(np.repeat(expected, 2))
    assert world.done(3).top_ids == TokenIds(np.repeat(history[1:], 2))
    assert sum(num for step in world.chunks for _, num in step) >= 200
    assert world.num_busy_pages == 0
    assert world.node.core.load(0.0).num_requests == 3, "kept until the gateway has them"
    for n in (1, 2, 3):
        assert world.hear(over(n)) == [
            EvaluationForgotten(request_id=n.to_bytes(16, "big"), attempt=1)
        ]
    assert world.node.core.is_idle


def test_what_is_cached_is_not_computed_where_nothing_is_asked_of_it() -> None:
    world = World()
    same = {"prompt_ids": TokenIds(prompt(1, 100))}
    world.hear(command(1, 100))
    world.run()
    world.hear(command(2, 100, **same))
    world.hear(command(3, 100, "score", first_scored=50, **same))
    world.hear(command(4, 100, pooling="mean", **same))
    world.run()
    assert [world.done(n).num_cached_tokens for n in (1, 2, 3, 4)] == [0, 96, 48, 0]
    assert len(floats(world.done(3).logprobs)) == 50
    assert world.done(2).vector == world.done(1).vector


def test_a_command_that_comes_again_is_told_what_there_is() -> None:
    world = World()
    taken = world.hear(command(1, 100))
    world.step()
    assert world.hear(command(1, 100)) == taken
    world.run()
    done = world.done(1)
    assert world.hear(command(1, 100)) == [done]
    world.hear(over(1))
    assert world.hear(over(1)) == [EvaluationForgotten(request_id=done.request_id, attempt=1)]
    [late] = world.hear(command(1, 100))
    assert late.code == "unavailable"
    assert not world.step()


def test_an_early_end_frees_the_pages_and_a_new_attempt_replaces_the_old() -> None:
    world = World()
    for n in (1, 2, 3):
        world.hear(command(n, 100))
    world.step()
    assert world.num_busy_pages > 0
    world.hear(over(1))
    world.hear(command(2, 100, attempt=2))
    world.hear(over(9))
    world.run()
    assert {word.attempt for word in world.said if isinstance(word, EvaluationDone)} == {1, 2}
    assert world.done(2).attempt == 2
    assert world.hear(command(9, 5))[0].code == "unavailable"
    assert world.num_busy_pages == 0


def test_a_silent_gateway_loses_what_it_asked_for() -> None:
    world = World()
    world.hear(command(1, 30), peer=b"gateway/other/1")
    world.run()
    world.hear(command(2, 100), peer=b"gateway/other/1")
    world.hear(command(3, 100))
    world.step()
    world.node.core.handle(GatewaySilent(b"gateway/other/1", False), world.now)
    world.run()
    assert world.done(3).code is None
    assert world.node.core.load(0.0).num_requests == 1
    assert world.num_busy_pages == 0


def test_without_pages_an_evaluation_waits_its_turn() -> None:
    world = World(num_pages=8)
    world.hear(command(1, 100))
    world.hear(command(2, 100))
    world.hear(command(3, 16))
    world.step()
    assert world.node.core.load(0.0).num_prefill_waiting == 3
    world.run()
    order = [word.request_id[-1] for word in world.said if isinstance(word, EvaluationDone)]
    assert order == [1, 2, 3]
    assert world.hear(command(4, 130))[0].code == "too_few_pages"


def test_turns_go_by_priority_then_age_among_prompts_too() -> None:
    world = World()
    spec = RequestSpec(
        request_id=(5).to_bytes(16, "big"),
        attempt=1,
        prompt_ids=TokenIds(prompt(5, 60)),
        output_ids=TokenIds(),
        params=SamplingParams(max_tokens=1),
        seed=0,
        choice=0,
        tenant="default",
        priority=0,
        targets=TARGETS,
        deadline_s=None,
        sequence=5,
        waited_s=0.5,
    )
    world.hear(command(1, 60, waited_s=0.7))
    world.hear(Decode(spec=spec, prefill=None))
    world.hear(command(2, 60))
    world.hear(command(3, 60, priority=1))
    world.run()
    begun = list(dict.fromkeys(n for step in world.chunks for n, _ in step))
    assert begun == [3, 1, 5, 2]
    assert [(3, 20), (1, 20)] in world.chunks, "two share a step"


def test_a_closed_role_takes_none_and_ends_those_that_it_has() -> None:
    world = World()
    world.hear(command(1, 100))
    world.step()
    world.node.core.handle(RolesChanged(RoleWeights(prefill=0, decode=1)), world.now)
    assert world.hear(command(2, 10))[0].code == "not_serving"
    assert isinstance(world.hear(command(1, 100))[0], EvaluationTaken)
    world.run()
    assert world.done(1).code is None


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"prompt_ids": TokenIds()}, "0 tokens"),
        ({"prompt_ids": TokenIds([VOCAB])}, "token ids must be"),
        ({"prompt_ids": TokenIds([-1])}, "token ids must be"),
        ({"task": "classify"}, "0 classes"),
        ({"task": "score", "first_scored": 0}, "second on"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(fields: dict[str, Any], text: str) -> None:
    world = World()
    [answer] = world.hear(command(1, 5, **fields))
    assert answer.code == "invalid_request"
    assert text in answer.message
    assert not world.step()


def test_answers_that_nobody_fetches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    monkeypatch.setattr(evaluations, "MAX_KEPT_BYTES", 100)
    for n in range(1, 21):
        world.hear(command(n, 5))
    world.run()
    assert world.node.core.load(0.0).num_requests == 6
    world.now += 2 * evaluations.KEPT_S
    world.step()
    assert world.node.core.is_idle


def test_a_prompt_under_the_key_of_an_evaluation_is_dropped() -> None:
    world = World()
    world.hear(command(1, 100))
    world.step()
    spec = RequestSpec(
        request_id=(1).to_bytes(16, "big"),
        attempt=1,
        prompt_ids=TokenIds(prompt(1, 300)),
        output_ids=TokenIds(),
        params=SamplingParams(max_tokens=1),
        seed=0,
        choice=0,
        tenant="default",
        priority=0,
        targets=TARGETS,
        deadline_s=None,
        sequence=1,
    )
    decode = NodeRef(node_id="d0", incarnation=1, epoch=1, control_address="tcp://x")
    assert world.hear(Prefill(spec=spec, decode=decode)) == []
    world.hear(Decode(spec=spec, prefill=None))
    world.run()
    assert world.done(1).code is None
    assert world.num_busy_pages == 0


def test_a_model_with_a_head_classifies_and_generates_nothing() -> None:
    world = World()
    state = world.node.state
    model = msgspec.structs.replace(state.identity.model, num_labels=4)
    state.identity = replace(state.identity, model=model)
    history = np.array(prompt(1, 100), np.int32)
    world.hear(command(1, 100, "classify"))
    world.run()
    assert floats(world.done(1).vector) == fake_vector(history).tolist()
    assert world.hear(command(2, 5, "score"))[0].code == "invalid_request"
    spec = RequestSpec(
        request_id=(3).to_bytes(16, "big"),
        attempt=1,
        prompt_ids=TokenIds([1]),
        output_ids=TokenIds(),
        params=SamplingParams(max_tokens=1),
        seed=0,
        choice=0,
        tenant="default",
        priority=0,
        targets=TARGETS,
        deadline_s=None,
        sequence=3,
    )
    [refused] = world.hear(Decode(spec=spec, prefill=None))
    assert "generates nothing" in refused.message
