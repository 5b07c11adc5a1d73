"""Guards of admission: early rejection, the queue, what a placement changes."""

from scripts.mutation.mutation import Mutation

OVERLOAD = "tests/coordinator/test_overload.py"
QUEUEING = "tests/coordinator/test_queueing.py"
PLACEMENT = "tests/coordinator/test_placement.py"
SHEDDING = "tests/coordinator/test_shedding.py"
ESTIMATES = "tests/scheduling/routing/test_estimates.py"

GUARDS = (
    Mutation(
        "early-rejection",
        "who cannot make it is told so at once",
        "scheduling/routing/early_rejection.py",
        "if predicted.ttft_s is None or prefill.num_prefill_tokens == 0:",
        "if True:",
        (OVERLOAD, ESTIMATES),
    ),
    Mutation(
        "infeasible-is-served",
        "a target that idle nodes break refuses nobody",
        "scheduling/routing/estimates.py",
        "return alone_s is not None and alone_s <= target_s and math.isfinite(target_s)",
        "return True",
        (OVERLOAD, ESTIMATES),
    ),
    Mutation(
        "trusted-costs",
        "costs of few steps or of a poor fit decide nothing",
        "scheduling/routing/estimates.py",
        "if costs is None or costs.num_steps < MIN_STEPS or costs.error > MAX_ERROR:",
        "if costs is None:",
        (OVERLOAD, ESTIMATES),
    ),
    Mutation(
        "crowding",
        "a tenant that floods leaves room for the others",
        "coordinator/placements.py",
        "ttft_share=CROWDING_SHARE if is_crowding else 1.0,",
        "ttft_share=1.0,",
        (OVERLOAD,),
    ),
    Mutation(
        "held-bound",
        "few questions wait at the coordinator",
        "coordinator/admission.py",
        "if self._held.is_full or self._placements.is_known(request):",
        "if self._placements.is_known(request):",
        (QUEUEING,),
    ),
    Mutation(
        "held-once",
        "a question that waits is asked again without effect",
        "coordinator/admission.py",
        "if held is not None and request.attempt <= held.request.attempt:",
        "if False:",
        (QUEUEING,),
    ),
    Mutation(
        "held-in-turn",
        "nobody passes those that wait",
        "coordinator/admission.py",
        "if self.num_held and self._full is not None",
        "if False and self._full is not None",
        (QUEUEING,),
    ),
    Mutation(
        "held-too-late",
        "who can no longer make it is not kept waiting",
        "coordinator/queueing.py",
        "if held.due_at < now]",
        "if False]",
        (QUEUEING,),
    ),
    Mutation(
        "held-and-cancelled",
        "nobody is placed for a request that is over",
        "coordinator/admission.py",
        "        self._held.remove(key)\n        if self._placements.forget(key):",
        "        if self._placements.forget(key):",
        (QUEUEING,),
    ),
    Mutation(
        "described-anew",
        "a placement changes what the next one sees",
        "coordinator/placements.py",
        "        node.num_placed += 1\n        node.candidate = None\n",
        "        node.num_placed += 1\n",
        (PLACEMENT, SHEDDING),
    ),
)
