"""What is broken, in whom, when: the cells of the matrix.

Phases: queued (A), prefilling (B), handing over (D), first token (F), mid-stream (G), last tokens
(H), idle (I), draining (J). A phase is where most of the requests in flight are when it strikes;
the others are before or behind it.
"""

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

from scripts.fault_matrix.deployment import Deployment, Shape
from scripts.fault_matrix.load import Load, PhaseTest

# Steps long enough that phases last: 40 ms a step, prompts of 2 to 8 chunks.
FAKE = ("--num-pages", "256", "--max-num-batched-tokens", "64", "--max-num-seqs", "32")
SLOW_STEPS = (*FAKE, "--fake-step-s", "0.03", "--fake-wedge-s", "20")
REAL = ("--num-pages", "512", "--max-num-batched-tokens", "96", "--max-num-seqs", "32")

MAPPED = Shape(name="mapped", num_gateways=2, node_args=SLOW_STEPS)
PROXIED = Shape(name="proxied", proxied=True, node_args=SLOW_STEPS)
REAL_MAPPED = Shape(name="real", is_real=True, node_args=REAL)
REAL_PROXIED = Shape(name="real-proxied", is_real=True, proxied=True, node_args=REAL)

PHASES: dict[str, PhaseTest] = {
    "queued": PhaseTest(0, share=0.5),
    "prefilling": PhaseTest(1, share=0.05),
    "handing-over": PhaseTest(1, share=0.3),
    "first-token": PhaseTest(2, share=0.4),
    "mid-stream": PhaseTest(8, share=0.5),
    "last-tokens": PhaseTest(share=0.3, num_left=2),
}
Strike = Callable[[Deployment, Load], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One experiment. `strikes` is the fault; `lasts_s` later the deployment is healed.

    `is_down`: a node whose loss the coordinator must notice (detection is timed). `damages`: the
    proxy must have repeated, dropped or altered something, else the cell proves nothing.
    """

    role: str
    phase: str
    fault: str
    shape: Shape
    strike: Strike
    lasts_s: float = 0.0
    is_down: str | None = None
    num_requests: int = 24
    damages: bool = False

    @property
    def name(self) -> str:
        """Unique in the matrix."""
        return f"{self.shape.name}:{self.role}:{self.phase}:{self.fault}"


def kill(*names: str) -> Strike:
    """kill -9."""

    def strike(deployment: Deployment, load: Load) -> None:
        for name in names:
            deployment.signal(name, signal.SIGKILL)

    return strike


def freeze(name: str) -> Strike:
    """SIGSTOP; healing continues it."""
    return lambda deployment, load: deployment.signal(name, signal.SIGSTOP)


def wedge(name: str) -> Strike:
    """The next step of a fake node hangs, while its other threads go on."""
    return lambda deployment, load: deployment.signal(name, signal.SIGUSR1)


def drain(name: str) -> Strike:
    """SIGTERM: finish or hand over what runs, then leave."""
    return lambda deployment, load: deployment.signal(name, signal.SIGTERM)


def drain_then_kill(name: str) -> Strike:
    """Dies in the middle of its drain."""

    def strike(deployment: Deployment, load: Load) -> None:
        deployment.signal(name, signal.SIGTERM)
        time.sleep(0.15)
        deployment.signal(name, signal.SIGKILL)

    return strike


def weather(name: str, **changes: float) -> Strike:
    """The sockets of a node (control and pages) behave badly."""

    def strike(deployment: Deployment, load: Load) -> None:
        for field, value in changes.items():
            setattr(deployment.weather[name], field, value)

    return strike


def uplink(name: str, **changes: float) -> Strike:
    """A node's link to the coordinator behaves badly."""

    def strike(deployment: Deployment, load: Load) -> None:
        for field, value in changes.items():
            setattr(deployment.uplink[name], field, value)

    return strike


def flap(name: str) -> Strike:
    """A node is cut off and back every half second, three times."""

    def strike(deployment: Deployment, load: Load) -> None:
        for blocked in (True, False) * 3:
            deployment.weather[name].block_up = deployment.weather[name].block_down = blocked
            time.sleep(0.5)

    return strike


def cut(deployment: Deployment, load: Load) -> None:
    """Every connection is reset."""
    deployment.cut()


def clients_leave(deployment: Deployment, load: Load) -> None:
    """A third of the clients go away."""
    load.leave(range(0, len(load.traces), 3))


def nothing(deployment: Deployment, load: Load) -> None:
    """No fault: the matrix must pass without one, too."""


def _mapped_cells() -> Iterator[Cell]:
    phases = tuple(PHASES)
    for name, phase in product(("prefill-0", "decode-0"), phases):
        cell = partial(Cell, role=name[:-2], phase=phase, shape=MAPPED)
        yield cell(fault="kill", strike=kill(name), is_down=name)
        yield cell(fault="freeze-6s", strike=freeze(name), lasts_s=6.0, is_down=name)
        if phase in ("prefilling", "mid-stream"):
            yield cell(fault="freeze-1s", strike=freeze(name), lasts_s=1.0)
            yield cell(fault="drain", strike=drain(name))
            yield cell(fault="drain-kill", strike=drain_then_kill(name))
    # Only a node that has something to compute hangs.
    for name, phase in (("prefill-0", "prefilling"), ("decode-0", "first-token")):
        cell = partial(Cell, role=name[:-2], phase=phase, shape=MAPPED)
        yield cell(fault="wedge", strike=wedge(name), is_down=name)
    for phase in phases:
        cell = partial(Cell, phase=phase, shape=MAPPED)
        yield cell(role="coordinator", fault="kill", strike=kill("coordinator"), lasts_s=1.0)
        yield cell(role="gateway", fault="kill", strike=kill("gateway-0"))
        yield cell(role="client", fault="leave", strike=clients_leave)
        yield cell(role="both", fault="kill", strike=kill("prefill-0", "decode-0"))
    cell = partial(Cell, phase="mid-stream", shape=MAPPED)
    yield cell(role="coordinator", fault="kill-8s", strike=kill("coordinator"), lasts_s=8.0)
    yield cell(role="coordinator", fault="freeze-6s", strike=freeze("coordinator"), lasts_s=6.0)
    yield cell(role="gateway", fault="freeze-3s", strike=freeze("gateway-0"), lasts_s=3.0)
    yield cell(role="none", fault="none", strike=nothing)


def _proxied_cells() -> Iterator[Cell]:
    bad: dict[str, dict[str, float]] = {
        "flip": {"flip": 0.3},
        "truncate": {"truncate": 0.3},
        "repeat-10%": {"repeat": 0.1},
        "drop-5%": {"drop": 0.05},
        "delay-100ms": {"delay_s": 0.1},
        "slow-20kBps": {"bytes_per_s": 20_000},
    }
    phases = ("queued", "handing-over", "mid-stream")
    for (fault, changes), phase in product(bad.items(), phases):
        is_slow = bool({"delay_s", "bytes_per_s"} & set(changes))
        if (
            phase == "queued" or is_slow or fault.endswith("%")
        ):  # later no pages may be on their way
            cell = partial(Cell, role="decode", phase=phase, shape=PROXIED)
            strike = weather("decode-0", **changes)
            yield cell(fault=fault, strike=strike, lasts_s=4.0, damages=not is_slow)
    for name, phase in product(("prefill-0", "decode-0"), ("handing-over", "mid-stream")):
        cell = partial(Cell, role=name[:-2], phase=phase, shape=PROXIED, lasts_s=5.0)
        away = uplink(name, block_up=1, block_down=1)
        yield cell(fault="partition", strike=weather(name, block_up=1, block_down=1))
        yield cell(fault="one-way-in", strike=weather(name, block_up=1))
        yield cell(fault="one-way-out", strike=weather(name, block_down=1))
        yield cell(fault="no-coordinator", strike=away, is_down=name)
        yield cell(fault="flapping", strike=flap(name))
        yield cell(fault="kill", strike=kill(name), is_down=name)
    cell = partial(Cell, phase="mid-stream", shape=PROXIED)
    yield cell(role="all", fault="cut", strike=cut)
    yield cell(role="none", fault="none", strike=nothing)


def _real_cells() -> Iterator[Cell]:
    cell = partial(Cell, shape=REAL_MAPPED)
    decode = partial(cell, role="decode", phase="mid-stream")
    yield cell(
        role="prefill",
        phase="prefilling",
        fault="kill",
        strike=kill("prefill-0"),
        is_down="prefill-0",
    )
    yield decode(fault="kill", strike=kill("decode-0"), is_down="decode-0")
    yield decode(fault="freeze-6s", strike=freeze("decode-0"), lasts_s=6.0, is_down="decode-0")
    yield decode(fault="drain", strike=drain("decode-0"))
    yield cell(
        role="coordinator",
        phase="mid-stream",
        fault="kill",
        strike=kill("coordinator"),
        lasts_s=1.0,
    )
    far = partial(Cell, role="decode", shape=REAL_PROXIED, lasts_s=3.0)
    flip = weather("decode-0", flip=0.3)
    yield far(phase="queued", fault="flip", strike=flip, damages=True)
    yield far(phase="handing-over", fault="kill", strike=kill("decode-0"), is_down="decode-0")


def all_cells() -> dict[str, Cell]:
    """The whole matrix, by name."""
    cells = [*_mapped_cells(), *_proxied_cells(), *_real_cells()]
    return {cell.name: cell for cell in cells}
