"""The threads of a step: they compute its parts side by side, and wait where there is none.

Parts meet nowhere but where a chunk was cut: there the later part waits in each layer until the
earlier one has written K and V of that layer. The earlier never waits for the later, so somebody
can always go on. Idle threads sleep on a lock: spinning ones would take the cores from the other
processes of the host. Those that help with products spin, within a step.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from engine.parts import Part
from kernels.cpu.team import ProductTeam

T = TypeVar("T")
Written = Callable[[], None]
Tasks = SimpleQueue[Callable[[], None] | None]


class StepThreads:
    """`num_threads` in all: the caller's own is the first, the others end when this object does.

    While a step of one part runs, the others help with its products, where there is a `team`.
    """

    def __init__(self, num_threads: int, team: ProductTeam | None = None) -> None:
        assert num_threads >= 1
        self.num_threads = num_threads
        self._team = team
        self._is_helping = [False] * (num_threads - 1)
        self._queues: list[Tasks] = [SimpleQueue() for _ in range(num_threads - 1)]
        for n, tasks in enumerate(self._queues, 1):
            name = f"step part {n}"
            threading.Thread(target=_work, args=(tasks,), name=name, daemon=True).start()
        weakref.finalize(self, _end, self._queues)

    def run(self, parts: Sequence[Part], compute: Callable[[Part, Written], T]) -> list[T]:
        """`compute` of every part, one thread each; returns, or raises, when all have ended.

        Its second argument is to be called in every layer, between the writing of K and V and the
        attention to them. Where several parts fail, the error of the first one is raised.
        """
        assert 0 < len(parts) <= self.num_threads
        if len(parts) == 1 and self._team is not None:
            with self._helped(self._team):
                return [compute(parts[0], nobody_waits)]
        orders = layer_orders(parts)
        results: dict[int, T] = {}
        errors: dict[int, BaseException] = {}
        ended: SimpleQueue[int] = SimpleQueue()

        def work(n: int) -> None:
            order = orders[n]
            try:
                results[n] = compute(parts[n], nobody_waits if order is None else order.written)
            except BaseException as error:  # noqa: BLE001  # raised again where `run` was called
                errors[n] = error
                if order is not None:
                    order.failed()
            ended.put(n)

        for n in range(1, len(parts)):
            self._queues[n - 1].put(partial(work, n))
        work(0)
        for _ in parts:
            ended.get()
        if errors:
            raise errors[min(errors)]
        return [results[n] for n in range(len(parts))]

    @property
    def has_team(self) -> bool:
        """Whether products of a step of one part are shared."""
        return self._team is not None

    @contextlib.contextmanager
    def _helped(self, team: ProductTeam) -> Iterator[None]:
        team.open()
        for n, tasks in enumerate(self._queues):
            if not self._is_helping[n]:  # else it has not seen yet that the last step is over
                self._is_helping[n] = True
                tasks.put(partial(_help, team, self._is_helping, n))
        try:
            yield
        finally:
            team.close()


class LayerOrder:
    """How far a part is, for the part behind it."""

    def __init__(self, before: "LayerOrder | None") -> None:
        self._before = before
        self._condition = threading.Condition()
        self._num_written = 0
        self._has_failed = False

    def written(self) -> None:
        """K and V of one more layer are in the pages; returns when those of the part before are."""
        if self._before is not None:
            self._before._wait_for(self._num_written + 1)
        with self._condition:
            self._num_written += 1
            self._condition.notify_all()

    def failed(self) -> None:
        """It writes nothing more."""
        with self._condition:
            self._has_failed = True
            self._condition.notify_all()

    def _wait_for(self, num_layers: int) -> None:
        with self._condition:
            while self._num_written < num_layers:
                if self._has_failed:
                    raise RuntimeError("the part with the chunk's earlier rows has failed")
                self._condition.wait()


def layer_orders(parts: Sequence[Part]) -> list[LayerOrder | None]:
    """One for every part that waits or is waited for."""
    orders: list[LayerOrder | None] = []
    for part, behind in zip(parts, [*parts[1:], None], strict=True):
        is_awaited = behind is not None and behind.follows
        before = orders[-1] if part.follows else None
        orders.append(LayerOrder(before) if is_awaited or part.follows else None)
    return orders


def nobody_waits() -> None:
    """For a part whose rows depend on no other part's."""


def _help(team: ProductTeam, is_helping: list[bool], n: int) -> None:
    team.serve()
    is_helping[n] = False


def _work(tasks: Tasks) -> None:
    while (task := tasks.get()) is not None:
        task()
        del task  # it holds the step's tensors


def _end(queues: Sequence[Tasks]) -> None:
    for tasks in queues:
        tasks.put(None)
