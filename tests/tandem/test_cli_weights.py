"""`tandem weights` against a scripted coordinator."""

from collections.abc import Callable
from typing import Any

import pytest

from tandem.cli import main
from tandem.messages.membership import FromOperator, RoleWeights, SetWeights, WeightsAnswer


@pytest.fixture
def coordinator(
    server_of: Callable[[Any, Callable[[Any], Any]], Any],
) -> Callable[..., tuple[str, list[SetWeights]]]:
    """Starts one that takes orders, or not."""

    def start(*, accepts: bool = True) -> tuple[str, list[SetWeights]]:
        asked: list[SetWeights] = []

        def answer(message: Any) -> Any:
            asked.append(message)
            text = f"{message.name} turns" if accepts else "it is the last"
            return WeightsAnswer(accepted=accepts, message=text)

        return server_of(FromOperator, answer), asked

    return start


def test_weights_are_ordered(coordinator: Any, capsys: pytest.CaptureFixture[str]) -> None:
    address, asked = coordinator()
    flags = ["--prefill", "1", "--decode", "0.5", "--force", "--coordinator", address]
    assert main(["weights", "node-0", *flags]) == 0
    assert capsys.readouterr().out == "node-0 turns\n"
    weights = RoleWeights(prefill=1.0, decode=0.5)
    assert asked == [SetWeights(name="node-0", weights=weights, force=True)]


def test_a_refusal_is_an_error(coordinator: Any, capsys: pytest.CaptureFixture[str]) -> None:
    address, asked = coordinator(accepts=False)
    flags = ["--prefill", "0", "--decode", "1", "--coordinator", address]
    assert main(["weights", "node-0", *flags]) == 1
    assert capsys.readouterr().err == "tandem weights: it is the last\n"
    assert not asked[0].force


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "much", ""])
def test_what_is_no_share_is_wrong_use(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["weights", "node-0", "--prefill", text, "--decode", "1"])
    assert error.value.code == 2
    assert "--prefill" in capsys.readouterr().err


def test_both_weights_must_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["weights", "node-0", "--prefill", "1"])
    assert "--decode" in capsys.readouterr().err
