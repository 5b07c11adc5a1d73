"""One cell: load, strike, heal, and what every client saw."""

import random
import time
from dataclasses import dataclass, replace

from scripts.fault_matrix.cells import PHASES, Cell
from scripts.fault_matrix.deployment import Deployment
from scripts.fault_matrix.load import Job, Load, Violations, count_violations, make_jobs
from tandem.messages.membership import ClusterStatus

PHASE_S = 20.0
END_S = 60.0
CLEAN_S = 40.0  # nodes remember what a dead gateway did not acknowledge for 30 s
PROMPT, OUTPUT = (40, 400), (20, 60)
DETECTION_LIMIT_S = 5 * 3.0  # five times what the design promises; virtual time is stricter


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a cell showed. Times in seconds; None where there was nothing to time."""

    name: str
    problems: tuple[str, ...]
    num_requests: int
    num_tokens: int
    violations: Violations
    has_leaked: bool  # I3: pages or requests left on a node
    detection_s: float | None
    recovery_s: float
    seconds: float

    @property
    def has_passed(self) -> bool:
        """Whether every client saw the undisturbed answer, once, and nothing was left."""
        return not self.problems


def prepare_jobs(deployment: Deployment, cell: Cell, seed: int) -> list[Job]:
    """Jobs with their undisturbed answers; a real model is asked for them first."""
    output = (12, 24) if deployment.shape.is_real else OUTPUT
    jobs = make_jobs(cell.num_requests, random.Random(seed), prompt=PROMPT, output=output)
    if not deployment.shape.is_real:
        return jobs
    load = Load(deployment.gateways, jobs)
    load.start()
    load.wait(END_S)
    failed = [trace.error for trace in load.traces if trace.error is not None]
    assert not failed, f"undisturbed requests failed: {failed[0]}"
    return [replace(job, answer=tuple(t.ids)) for job, t in zip(jobs, load.traces, strict=True)]


def run_cell(deployment: Deployment, cell: Cell, seed: int) -> Outcome:
    """Run one cell on a healthy deployment, and leave it healthy."""
    began_at = time.monotonic()
    jobs = prepare_jobs(deployment, cell, seed)
    load = Load(deployment.gateways, jobs)
    load.start()
    problems = []
    if not load.wait_until(PHASES[cell.phase], PHASE_S):
        problems.append(f"the load never was in phase {cell.phase}")
    num_damaged = deployment.num_network_faults
    struck_at = time.monotonic()
    cell.strike(deployment, load)
    detection_s = _time_detection(deployment, cell, struck_at)
    if cell.is_down is not None and detection_s is None:
        problems.append(f"{cell.is_down} was not noticed within {DETECTION_LIMIT_S:g} s")
    time.sleep(max(0.0, struck_at + cell.lasts_s - time.monotonic()))
    deployment.heal()
    load.wait(END_S)
    found = [(n, trace.problem) for n, trace in enumerate(load.traces)]
    problems += [f"request {n}: {problem}" for n, problem in found if problem is not None][:5]
    if cell.damages and deployment.num_network_faults == num_damaged:
        problems.append("the proxy had nothing to damage")
    left = deployment.leftovers(CLEAN_S)
    if left is not None:
        problems.append(f"left behind: {left}")
    return Outcome(
        name=cell.name,
        problems=tuple(problems),
        num_requests=len(jobs),
        num_tokens=sum(len(trace.ids) for trace in load.traces),
        violations=count_violations(load.traces),
        has_leaked=left is not None,
        detection_s=detection_s,
        recovery_s=load.recovery_s(struck_at),
        seconds=time.monotonic() - began_at,
    )


def _time_detection(deployment: Deployment, cell: Cell, struck_at: float) -> float | None:
    """From the strike until the coordinator has taken the node out."""
    if cell.is_down is None:
        return None

    def is_out(status: ClusterStatus) -> bool:
        return cell.is_down not in {node.node_id for node in status.nodes}

    found = deployment.wait_for(is_out, DETECTION_LIMIT_S)
    return None if found is None else time.monotonic() - struck_at
