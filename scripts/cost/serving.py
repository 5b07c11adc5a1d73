"""Deployments that differ in one guard each, measured in turns with the same requests."""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadgen.measure import Measurement, RequestSample, run_workload
from loadgen.workload import Workload
from scripts.cost.altered import ADMITTED, NOTHING, PREFILL_END
from tandem.async_client import AsyncClient
from tandem.child_process import ProcessPlan
from tandem.launch import LocalCluster

MODEL = Path(__file__).resolve().parents[2] / "models/demo"
STAMP = re.compile(r"^stamp (?P<moment>\w+) (?P<request_id>[0-9a-f]{32}) (?P<at>[0-9.]+)$")
STAMPS_S = 5.0
VOCAB_SIZE = 4096
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """A deployment without some guards, by name of what it is without."""

    name: str
    is_encrypted: bool = True
    taken_out: tuple[str, ...] = ()


AS_IT_IS = Setting("as it is")
SETTINGS = (
    AS_IT_IS,
    Setting("checksums", taken_out=("checksums",)),
    Setting("CURVE", is_encrypted=False),
    Setting("acknowledgements", taken_out=("acknowledgements",)),
    Setting("all three", is_encrypted=False, taken_out=("checksums", "acknowledgements")),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is started, and what each deployment is given in each round."""

    transport: str
    settings: tuple[Setting, ...]
    device: str
    num_pages: int  # of each node
    single: Workload  # one request at a time
    loaded: Workload
    max_in_flight: int
    num_rounds: int


@dataclass(frozen=True, slots=True)
class Handoff:
    """One request, in ms. `total` is from the end of prefill to the admission, on one clock.

    `waiting` is the part after the pages were verified (durations of the decode node). `timeline`
    is what the timeline of `Done` says for `total`. `gap` is from the first token to the second
    one, at the client.
    """

    total: float
    waiting: float
    timeline: float
    gap: float


@dataclass(frozen=True, slots=True)
class Round:
    """One deployment, measured once."""

    single: tuple[Handoff, ...]
    loaded: tuple[Handoff, ...]
    tokens_per_s: float
    num_bytes: int  # of KV, moved for one single request


class Deployment:
    """A running cluster and the moments that its nodes told."""

    def __init__(self, setting: Setting, plan: Plan) -> None:
        self.setting = setting
        self._stamps: dict[str, dict[str, float]] = {PREFILL_END: {}, ADMITTED: {}}
        self._came = threading.Condition()
        self.cluster = LocalCluster(
            model=str(MODEL),
            node_args=(
                *("--transport", plan.transport, "--device", plan.device),
                *("--num-pages", str(plan.num_pages)),
            ),
            coordinator_args=("--early-rejection", "off"),
            sink=self._take_line,
            secure=setting.is_encrypted,
            started_as=self._alter,
        )

    def _alter(self, plan: ProcessPlan) -> ProcessPlan:
        guards = ",".join(self.setting.taken_out) or NOTHING
        flags = (plan.module, guards, *plan.flags)
        return ProcessPlan(name=plan.name, module="scripts.cost.altered", flags=flags)

    def _take_line(self, name: str, line: str) -> None:
        if (match := STAMP.match(line)) is not None:
            with self._came:
                self._stamps[match["moment"]][match["request_id"]] = float(match["at"])
                self._came.notify()

    def client(self) -> AsyncClient:
        """For its gateway, with a key where it has keys."""
        cluster = self.cluster
        return AsyncClient(cluster.gateway_address, keys=cluster.keys, key_name=cluster.key_name)

    def handoffs(self, samples: Sequence[RequestSample]) -> tuple[Handoff, ...]:
        """Those of these requests, whose stamps come with a delay."""
        wanted = {sample.request_id for sample in samples}
        with self._came:
            came = self._came.wait_for(
                lambda: all(wanted <= stamps.keys() for stamps in self._stamps.values()), STAMPS_S
            )
        if not came:
            raise ValueError(f"{self.setting.name}: requests that were not handed over")
        return tuple(self._handoff(sample) for sample in samples)

    def _handoff(self, sample: RequestSample) -> Handoff:
        line = sample.timeline
        marks = (line.first_token_s, line.transfer_end_s, line.decode_start_s)
        if None in marks or line.num_attempts != 1:
            raise ValueError(f"{self.setting.name}: a request with the timeline {line}")
        first_token_s, transfer_end_s, decode_start_s = (float(mark or 0.0) for mark in marks)
        ended_at, admitted_at = (
            self._stamps[moment].pop(sample.request_id) for moment in (PREFILL_END, ADMITTED)
        )
        return Handoff(
            total=(admitted_at - ended_at) * 1e3,
            waiting=(decode_start_s - transfer_end_s) * 1e3,
            timeline=(decode_start_s - first_token_s) * 1e3,
            gap=sample.gaps_s[0] * 1e3,
        )


@contextmanager
def started(plan: Plan, say: Say) -> Iterator[list[Deployment]]:
    """A deployment of each setting; all are up at once, and idle but for the one measured."""
    with ExitStack() as stack:
        deployments = [Deployment(setting, plan) for setting in plan.settings]
        for deployment in deployments:
            began_at = time.monotonic()
            stack.enter_context(deployment.cluster)
            without = deployment.setting.name
            say(f"{plan.transport}, {without}: up in {time.monotonic() - began_at:.1f} s")
        yield deployments


def measure(plan: Plan, say: Say) -> list[dict[str, list[Round]]]:
    """Rounds of results by setting; the deployment as it is comes twice in each."""
    with started(plan, say) as deployments:
        return asyncio.run(_measure(deployments, plan, say))


async def _measure(
    deployments: Sequence[Deployment], plan: Plan, say: Say
) -> list[dict[str, list[Round]]]:
    rounds: list[dict[str, list[Round]]] = []
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(each.client()) for each in deployments]
        pairs = list(zip(deployments, clients, strict=True))
        for deployment, client in pairs:  # the first hand-off opens the nodes' links
            await client.wait_until_ready(30.0)
            await _run_round(deployment, client, plan, seed=0)
        for number in range(1, plan.num_rounds + 1):
            began_at = time.monotonic()
            turn = (number - 1) % len(pairs)
            order = [*pairs[turn:], *pairs[:turn]]
            results: dict[str, list[Round]] = {}
            for index, (deployment, client) in enumerate([*order, pairs[0]]):
                seed = number * 1000 + index  # prompts that no cache has
                result = await _run_round(deployment, client, plan, seed=seed)
                results.setdefault(deployment.setting.name, []).append(result)
            rounds.append(results)
            say(f"{plan.transport}: round {number} took {time.monotonic() - began_at:.1f} s")
    return rounds


async def _run_round(
    deployment: Deployment, client: AsyncClient, plan: Plan, *, seed: int
) -> Round:
    single = await _drive(client, plan.single, 1, seed)
    loaded = await _drive(client, plan.loaded, plan.max_in_flight, seed + 500)
    return Round(
        single=deployment.handoffs(single.samples),
        loaded=deployment.handoffs(loaded.samples),
        tokens_per_s=loaded.tokens_per_s,
        num_bytes=single.samples[0].timeline.transfer_bytes,
    )


async def _drive(
    client: AsyncClient, workload: Workload, max_in_flight: int, seed: int
) -> Measurement:
    measured = await run_workload(
        client, workload, vocab_size=VOCAB_SIZE, max_in_flight=max_in_flight, seed=seed
    )
    if measured.num_tokens != workload.num_output_tokens:
        raise ValueError(f"{measured.num_failed} requests failed: {'; '.join(measured.errors)}")
    return measured
