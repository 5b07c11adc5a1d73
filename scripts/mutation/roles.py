"""Guards of role orders, the balancer and moves for balance."""

from scripts.mutation.mutation import Mutation

ROLES = "tests/coordinator/test_roles.py"
NODE_ROLES = "tests/node/test_roles.py"
BALANCING = "tests/coordinator/test_balancing.py"
BALANCE = "tests/scheduling/test_balance.py"
MIGRATION = "tests/scheduling/test_migration.py"
LEDGER = "tests/gateway/test_ledger_roles.py"

GUARDS = (
    Mutation(
        "last-keeps-its-role",
        "the last node of a role keeps it",
        "coordinator/roles.py",
        "return [role for role, before, after in roles if before > 0 and after == 0]",
        "return []",
        (ROLES,),
    ),
    Mutation(
        "opens-when-obeyed",
        "a role opens when the node said that it obeyed",
        "coordinator/members.py",
        "prefill=wanted.prefill if told.prefill else 0.0,",
        "prefill=wanted.prefill,",
        (ROLES,),
    ),
    Mutation(
        "closed-costs-no-retry",
        "a closed role costs no retry",
        "gateway/attempts.py",
        "if failure.is_death or failure.is_closed:\n            return None",
        "if failure.is_death:\n            return None",
        (LEDGER,),
    ),
    Mutation(
        "closed-again-waits",
        "who meets closed roles again and again asks no faster than nodes beat",
        "gateway/attempts.py",
        "if failure.is_closed and sum(each.is_closed for each in request.failures) > 1:",
        "if False:",
        (LEDGER,),
    ),
    Mutation(
        "dwell",
        "a dwell lies between two changes of roles",
        "scheduling/balance.py",
        "return now - self._acted_at >= dwell_s",
        "return True",
        (BALANCE,),
    ),
    Mutation(
        "dwell-of-each-node",
        "among many nodes, who was turned stays for a dwell",
        "scheduling/balance.py",
        "return [n for n in free if now - turned_at.get(n.node_id, -math.inf) >= dwell_s]",
        "return free",
        (BALANCE,),
    ),
    Mutation(
        "home-waits-a-dwell",
        "nodes go home only where that was possible for a dwell",
        "scheduling/balance.py",
        "max(CONFIRM_S, self._dwell_s) if turn.is_homewards else CONFIRM_S",
        "CONFIRM_S",
        (BALANCE,),
    ),
    Mutation(
        "hysteresis",
        "a change of roles must be worth it",
        "scheduling/balance.py",
        "HYSTERESIS = 1.15",
        "HYSTERESIS = 1.0",
        (BALANCE,),
    ),
    Mutation(
        "one-change-at-a-time",
        "nothing changes while a node has not obeyed",
        "coordinator/balancing.py",
        "if not self._was_whole or is_busy:",
        "if not self._was_whole:",
        (BALANCING,),
    ),
    Mutation(
        "infeasible",
        "a target that nothing can keep changes no roles",
        "scheduling/balance.py",
        "if wanted.infeasible is not None:",
        "if False:",
        (BALANCE,),
    ),
    Mutation(
        "migration-narrows",
        "a move for balance narrows the gap and leaves the target well",
        "scheduling/migration.py",
        "return shortest if is_better else None",
        "return shortest",
        (MIGRATION,),
    ),
    Mutation(
        "closed-role",
        "new work of a closed role is refused",
        "node/refusals.py",
        "if is_closed and not is_here else None",
        "if False else None",
        (NODE_ROLES,),
    ),
    Mutation(
        "granted-work-is-honoured",
        "attempts that are at a node whose role is closed go on",
        "node/refusals.py",
        "if is_closed and not is_here else None",
        "if is_closed else None",
        (NODE_ROLES,),
    ),
    Mutation(
        "newest-order",
        "no order is obeyed after a newer one",
        "node/membership.py",
        "if number <= self._obeyed:",
        "if False:",
        (NODE_ROLES,),
    ),
)
