"""Whatever touches the device does so while it is the thread's current one, in any thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import engine.build
import engine.resident_runner
import engine.runner
from engine.build import EngineOptions, build_runner
from engine.on_device import on_device
from node.runner import StepBatch
from tandem.model_folder import load_model_config
from tests.engine.resident_world import PARAMS, Request, make_runners


class Guard:
    """Stands for `on_device`: which threads are inside."""

    def __init__(self) -> None:
        self.inside: set[int] = set()
        self.num_calls = 0

    @contextmanager
    def __call__(self, device: torch.device) -> Iterator[None]:
        own = threading.get_ident()
        self.inside.add(own)
        yield
        self.inside.remove(own)

    def checked(self, work: Callable[..., object]) -> Callable[..., object]:
        """`work`, which nobody may call from outside."""

        def call(*args: object, **named: object) -> object:
            assert threading.get_ident() in self.inside
            self.num_calls += 1
            return work(*args, **named)

        return call


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Guard:
    guard = Guard()
    for module in (engine.build, engine.runner, engine.resident_runner):
        monkeypatch.setattr(module, "on_device", guard)
    return guard


def test_a_gpu_becomes_current_and_a_cpu_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        entered.append(wanted)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    with on_device(torch.device("cpu")):
        assert entered == []
    with on_device(torch.device("cuda", 3)):
        assert entered == [torch.device("cuda", 3)]


def test_steps_of_any_thread_are_inside(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ours = make_runners("plain", 4)
    for owner, name in [
        (ours._decoder, "states"),
        (ours._decoder, "head"),
        (ours.rows, "place"),
        (ours._graphs, "run"),
        (ours, "_sample"),
        (plain, "_sample"),
    ]:
        monkeypatch.setattr(owner, name, guard.checked(getattr(owner, name)))
    decoding = Request((b"a", 1), PARAMS[0], [3] * 6, 6, [0, 1], 5)
    filtered = Request((b"b", 1), PARAMS[3], [3] * 6, 6, [2, 3], 5)
    prompt = Request((b"c", 1), PARAMS[0], [3] * 6, 6, [4, 5], 0)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for works in ([(decoding, 1), (filtered, 1)], [(decoding, 1), (prompt, 6)]):
                batch = StepBatch(tuple(request.step(n) for request, n in works))
                drawn = [runner.run(batch).sampled for runner in (plain, ours)]
                assert [s and s.token_id for s in drawn[0]] == [s and s.token_id for s in drawn[1]]
            plain.logits(StepBatch((prompt.step(6),)))
        except BaseException as error:  # noqa: BLE001  # told where the test sees it
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert errors == []
    assert guard.num_calls > 10


def test_a_node_is_built_inside(guard, demo_model: Path, monkeypatch) -> None:
    class Seen(Exception):
        pass

    def load(*args: object) -> None:
        raise Seen(threading.get_ident() in guard.inside)

    monkeypatch.setattr(engine.build, "load_weights", load)
    quiet = {"on_phase": lambda *_: None, "progress": lambda *_: None}
    with pytest.raises(Seen, match="True"):
        build_runner(demo_model, load_model_config(demo_model), EngineOptions(), **quiet)
