"""The balancer in the coordinator: what it sees, orders, says, and leaves alone."""

import pytest

from coordinator.traffic import TrafficMeter
from tandem.messages.common import NodeCosts, SlaTargets
from tandem.messages.membership import DrainMember, HeartbeatAck, RoleWeights, SetWeights
from tandem.messages.placement import GatewayWelcome
from tandem.status import render_status

COSTS = NodeCosts(
    step_s=0.004,
    prefill_token_s=0.001,
    prefill_context_s=0.0,
    decode_row_s=0.0005,
    decode_context_s=0.0,
    num_steps=100,
)
TARGETS = SlaTargets(sla_class="standard", ttft_ms=2000, tpot_ms=100)
ROLES = {"prefill": (1.0, 0.0), "decode": (0.0, 1.0)}
MIXED = RoleWeights(prefill=1, decode=1)


class Balanced:
    """A cluster whose nodes beat, obey at once, and get requests, ten each second."""

    def __init__(self, cluster, **roles: str) -> None:
        self.cluster = cluster
        self.weights = {}
        self.sent: list[tuple[str, object]] = []
        self.num_placed = 0
        self.obeys = True
        for name, role in roles.items():
            cluster.join(name, role, num_pages=4000)
            prefill, decode = ROLES[role]
            self.weights[name] = RoleWeights(prefill=prefill, decode=decode)

    def run(self, seconds: int, *, requests_s: int = 0, prompt: int = 200, costs=COSTS):
        for _ in range(seconds):
            for _ in range(requests_s):
                self.num_placed += 1
                self.cluster.place(self.num_placed, num_prompt_tokens=prompt, max_output_tokens=5)
            self.sent += self.cluster.pass_time(1.0)
            for name in self.weights:
                self._beat(name, costs)
            self.cluster.greet()
        return self

    def _beat(self, name: str, costs: NodeCosts | None) -> None:
        counts = {"num_pages": 4000, "costs": costs}
        heartbeat = self.cluster.heartbeat(name, counts=counts, weights=self.weights[name])
        (ack,) = [m for peer, m in self.cluster.send(name, heartbeat) if peer == name]
        if self.obeys and ack.roles is not None:
            self.weights[name] = ack.roles.weights

    def orders(self) -> list[tuple[str, RoleWeights]]:
        acks = [(peer, m) for peer, m in self.sent if isinstance(m, HeartbeatAck)]
        return [(peer, m.roles.weights) for peer, m in acks if m.roles is not None]


def balanced(make_cluster, mode: str = "on", dwell_s: float = 10.0, **roles: str) -> Balanced:
    cluster = make_cluster(balance=mode, balance_dwell_s=dwell_s, early_rejection="off")
    cluster.greet()
    return Balanced(cluster, **(roles or {"p0": "prefill", "d0": "decode"}))


def decisions(world: Balanced) -> list[str]:
    return [f"{d.kind}: {d.message}" for d in world.cluster.status().decisions]


def test_load_turns_a_node_and_everybody_hears_and_reads_why(make_cluster) -> None:
    world = balanced(make_cluster).run(15, requests_s=10)
    assert world.orders() == [("d0", MIXED)]
    assert any(isinstance(m, GatewayWelcome) for peer, m in world.sent if peer == "gw")
    (text,) = decisions(world)
    for part in ("roles: turns d0 from decode to both roles", "prefill and", "requests/s"):
        assert part in text
    assert sum("turns d0" in note for note in world.cluster.notes) == 1
    assert world.cluster.status().nodes[0].weights == MIXED
    assert "roles: turns d0" in render_status(world.cluster.status())


def test_idle_again_it_has_its_own_role_again(make_cluster) -> None:
    world = balanced(make_cluster).run(15, requests_s=10).run(60)
    assert [weights for _, weights in world.orders()] == [MIXED, RoleWeights(prefill=0, decode=1)]
    assert "back to its own role" in decisions(world)[0]


def test_observing_says_what_it_would_do_and_does_nothing(make_cluster) -> None:
    world = balanced(make_cluster, "observe").run(30, requests_s=10)
    assert world.orders() == []
    assert 1 <= len(decisions(world)) <= 3
    assert all(d.startswith("observed: would turn d0 from decode") for d in decisions(world))


def test_it_is_off_where_nobody_wants_it(make_cluster) -> None:
    world = balanced(make_cluster, "off").run(30, requests_s=10)
    assert world.orders() == [] and decisions(world) == []


def test_one_change_is_under_way_at_a_time(make_cluster) -> None:
    roles = {"p0": "prefill", "d0": "decode", "d1": "decode", "d2": "decode"}
    world = balanced(make_cluster, dwell_s=1.0, **roles)
    world.obeys = False
    world.run(20, requests_s=30)
    assert len(world.orders()) == 1
    world.obeys = True
    world.run(20, requests_s=30)
    assert len(world.orders()) > 1


def test_twenty_nodes_get_two_orders_at_once(make_cluster) -> None:
    roles = {"p0": "prefill", "p1": "prefill"} | {f"d{i:02}": "decode" for i in range(18)}
    world = balanced(make_cluster, **roles)
    while not world.orders():
        world.run(1, requests_s=15)
    assert len(world.orders()) == len({name for name, _ in world.orders()}) == 2
    world.run(1)
    assert [d.split(" from ")[0] for d in decisions(world)] == [
        "roles: turns d01",
        "roles: turns d00",
    ]
    assert all("2 nodes at once" in d for d in decisions(world))
    weights = {node.node_id: node.weights for node in world.cluster.status().nodes}
    assert weights["d00"] == weights["d01"] != weights["d02"]


def test_new_nodes_are_not_judged(make_cluster) -> None:
    world = balanced(make_cluster, dwell_s=1.0).run(4, requests_s=10)
    assert world.orders() == []


def test_an_operators_word_holds_for_a_dwell_and_is_the_nodes_own_role(make_cluster) -> None:
    world = balanced(make_cluster, dwell_s=10.0, p0="prefill", d0="decode", d1="decode").run(8)
    sent = world.cluster.send("operator", SetWeights(name="d0", weights=MIXED))
    assert any(m.accepted for peer, m in sent if peer == "operator")
    world.run(9, requests_s=20)
    assert {name for name, _ in world.orders()} <= {"d1"}
    world.run(60)
    assert world.weights["d0"] == MIXED, "not what it came with"
    assert world.weights["d1"] == RoleWeights(prefill=0, decode=1)


def test_a_draining_node_does_not_stand_in(make_cluster) -> None:
    world = balanced(make_cluster, p0="prefill", d0="decode", d1="decode")
    world.cluster.send("operator", DrainMember(name="d1"))
    world.run(30, requests_s=30)
    assert world.orders() == [("d0", MIXED)]


def test_regression_19_a_target_that_cannot_be_kept_is_said_once_and_changes_nothing(
    make_cluster,
) -> None:
    world = balanced(make_cluster, dwell_s=1.0).run(30, requests_s=1, prompt=3000)
    assert world.orders() == []
    (text,) = decisions(world)
    assert "infeasible: TTFT 2 s cannot be kept" in text and "no roles are changed" in text


def test_regression_19_cold_samples_decide_nothing(make_cluster) -> None:
    slow = NodeCosts(
        step_s=9.0,
        prefill_token_s=1.0,
        prefill_context_s=0.0,
        decode_row_s=1.0,
        decode_context_s=0.0,
        num_steps=3,
    )
    world = balanced(make_cluster, dwell_s=1.0).run(30, requests_s=2, costs=slow)
    assert world.orders() == [] and decisions(world) == []


# --- the meter ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1, 20])
def test_a_steady_rate_is_measured_and_forgotten(rate: int) -> None:
    meter = TrafficMeter(30.0, 0.0)
    for i in range(120 * rate):
        meter.arrived(i / rate, num_prompt=100, num_computed=40, num_output=10, targets=TARGETS)
    seen = meter.now(120.0)
    assert seen.num_requests_s == pytest.approx(rate, rel=0.2)
    assert seen.num_prefill_tokens_s == pytest.approx(40 * rate, rel=0.2)
    assert (seen.mean_prompt, seen.mean_computed, seen.mean_output) == pytest.approx((100, 40, 10))
    assert (seen.ttft_s, seen.tpot_s) == pytest.approx((2.0, 0.1))
    assert meter.now(600.0).num_requests_s == 0.0


def test_refused_prompts_count_like_the_others() -> None:
    meter = TrafficMeter(30.0, 0.0)
    meter.arrived(0.0, num_prompt=100, num_computed=25, num_output=10, targets=TARGETS)
    meter.arrived(0.0, num_prompt=100, num_computed=None, num_output=10, targets=TARGETS)
    assert meter.now(0.0).mean_computed == pytest.approx(25)


def test_answers_are_no_longer_than_others_were() -> None:
    meter = TrafficMeter(30.0, 0.0)
    for _ in range(100):
        meter.ended(20)
    meter.arrived(0.0, num_prompt=10, num_computed=10, num_output=4000, targets=TARGETS)
    assert meter.now(0.0).mean_output == pytest.approx(20)


def test_a_step_is_seen_within_seconds() -> None:
    meter = TrafficMeter(30.0, 0.0)
    for i in range(300):
        meter.arrived(i / 5, num_prompt=500, num_computed=500, num_output=5, targets=TARGETS)
    for i in range(25):
        meter.arrived(60 + i / 5, num_prompt=10, num_computed=10, num_output=300, targets=TARGETS)
    seen = meter.now(65.0)
    assert seen.mean_prompt < 150 and seen.mean_output > 200
