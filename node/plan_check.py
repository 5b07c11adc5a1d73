"""The node's side of the bargain with policies: a plan is cut down to what is legal. Pure."""

from dataclasses import dataclass

from scheduling.views import NodeView, RequestKey, StepPlan


@dataclass(frozen=True, slots=True)
class CheckedPlan:
    """A legal plan, and how many of the policy's wishes were not."""

    plan: StepPlan
    num_dropped: int


def check_plan(
    plan: StepPlan, view: NodeView, protected: frozenset[RequestKey] = frozenset()
) -> CheckedPlan:
    """Drop unknown or repeated requests, and rows and tokens over the node's limits.

    Pages must not go in circles: swapped requests stay away from a step that preempts others, and
    `protected` ones, which came back a moment ago, are not preempted.
    """
    running = {s.key for s in view.running}
    swapped = {s.key for s in view.swapped}
    todo = {s.key: s.num_tokens - s.num_computed for s in view.prefill}
    preempt = {key: mode for key, mode in plan.preempt if key in running}
    num_unknown = len(plan.preempt) - len(preempt)
    preempt = {k: m for k, m in preempt.items() if m == "migrate" or k not in protected}
    gone = {key for key, mode in preempt.items() if mode != "migrate"}
    candidates = {s.key for s in view.waiting} | (set() if gone else swapped)
    num_rows = view.max_num_seqs - len(running) + len(gone)
    admit = _unique([k for k in plan.admit if k in candidates])[: max(0, num_rows)]
    rows = (running - gone) | set(admit) if gone or admit else running
    decode = _unique([k for k in plan.decode if k in rows])
    padding = plan.padding_contexts[: view.max_num_seqs - len(decode)]
    budget = view.max_num_batched_tokens - len(decode) - len(padding)
    prefill: dict[RequestKey, int] = {}
    for key, num_tokens in plan.prefill:
        num_allowed = min(num_tokens, todo.get(key, 0), budget)
        if num_allowed > 0 and key not in prefill:
            prefill[key] = num_allowed
            budget -= num_allowed
    num_dropped = (
        num_unknown
        + (len(plan.admit) - len(admit))
        + (len(plan.decode) - len(decode))
        + (len(plan.padding_contexts) - len(padding))
        + (sum(n for _, n in plan.prefill) - sum(prefill.values()))
    )
    legal = StepPlan(
        decode=tuple(decode),
        prefill=tuple(prefill.items()),
        admit=tuple(admit),
        preempt=tuple(preempt.items()),
        padding_contexts=padding,
        wake_at=plan.wake_at,
    )
    return CheckedPlan(legal, num_dropped)


def _unique(keys: list[RequestKey]) -> list[RequestKey]:
    return list(dict.fromkeys(keys))
