"""What a request carries for those who decide by it: how long it waited, its length, its weight."""

from tandem.messages.common import LengthPrediction

PREDICTION = LengthPrediction(score=12.5, q50=10.0, q90=40.0)


def specs(world) -> list:
    return [spec for node in world.nodes.values() for spec in node.specs.values()]


def test_questions_and_commands_say_what_is_known(world) -> None:
    world.submit(prediction=PREDICTION, tenant_weight=3.0)
    world.now += 1.5
    question = world.question()
    assert (question.prediction, question.waited_s) == (PREDICTION, 0.0)
    world.hear(world.placed(question))
    world.deliver()
    assert len(specs(world)) == 2
    for spec in specs(world):
        assert (spec.prediction, spec.waited_s, spec.tenant_weight) == (PREDICTION, 1.5, 3.0)


def test_a_later_attempt_has_waited_since_the_request_came(world) -> None:
    world.submit(prediction=PREDICTION)
    world.coordinate()
    world.deliver()
    world.now += 2.0
    world.lose("d0")
    question = world.question()
    assert (question.prediction, question.waited_s) == (PREDICTION, 2.0)


def test_without_a_prediction_there_is_none(world) -> None:
    world.submit()
    assert world.question().prediction is None
