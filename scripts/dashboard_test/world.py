"""Deployments that are hard to bring about, as the dashboard's API would show them."""

import random
from dataclasses import dataclass

from scripts.dashboard_test.numbers import SERIES, quantiles, series_value, wobble
from scripts.dashboard_test.stories import EVENTS, NO_STAGES, State, verdict_of
from tandem.messages.common import NodeCosts
from tandem.messages.membership import PageCounts, RoleWeights
from tandem.messages.operations import (
    SNAPSHOT_VERSION,
    WINDOWS_S,
    Balance,
    ClassVerdict,
    Event,
    GatewayView,
    LiveView,
    NodeView,
    Quantiles,
    Rates,
    Series,
    Snapshot,
    StageTimes,
    WindowVerdict,
)

LOADS: dict[State, float] = {
    "empty": 0,
    "idle": 0,
    "loaded": 1.0,
    "death": 1.35,
    "many": 0.9,
    "calm": 0.6,
}
STEPS_S = {"5m": 1.0, "1h": 15.0, "3d": 900.0}
TARGETS = (
    ("interactive", 500.0, 50.0, 0.99),
    ("standard", 2000.0, 100.0, 0.95),
    ("batch", 30000.0, 500.0, 0.9),
)
NUM_PAGES = 4096


@dataclass(slots=True)
class World:
    """One deployment; `now` is unix seconds."""

    state: State = "loaded"
    incarnation: int = 3
    began_at: float = 0.0
    drained: frozenset[str] = frozenset()

    @property
    def load(self) -> float:
        """1 is what it carries well."""
        return LOADS[self.state]

    def snapshot(self, now: float, after_event: int) -> Snapshot:
        """Everything at one instant."""
        nodes = self._nodes(now)
        by = [
            sum(n.role == r and n.state != "down" for n in nodes)
            for r in ("prefill", "decode", "mixed")
        ]
        live = self._live(now) if self.load else ()
        return Snapshot(
            version=SNAPSHOT_VERSION,
            unix_s=now,
            coordinator_incarnation=self.incarnation,
            uptime_s=max(0.0, now - self.began_at),
            model="qwen3-8b" if nodes else None,
            max_model_len=32768 if nodes else None,
            classes=tuple(self._verdict(i, now) for i in range(3)),
            balance=Balance(
                mode="on",
                num_prefill=by[0],
                num_decode=by[1],
                num_mixed=by[2],
                explanation=self._why_balance(),
                cooldown_s=17.0 if self.load else None,
            ),
            rates=self._rates(now),
            nodes=nodes,
            gateways=()
            if not nodes
            else (
                GatewayView(
                    gateway_id="gateway", state="ok", num_live_requests=97, heartbeat_age_s=0.4
                ),
                GatewayView(
                    gateway_id="gateway-1", state="ok", num_live_requests=88, heartbeat_age_s=0.7
                ),
            ),
            live=live,
            num_live=185 if live else 0,
            num_queued=int(self.value("num_queued", now) or 0),
            events=tuple(e for e in self._events(now) if e.number > after_event),
        )

    def value(self, name: str, now: float) -> float | None:
        """A series' value now."""
        return series_value(name, now, self.load, self.began_at)

    def series(self, window: str, now: float) -> Series:
        """Samples of a window."""
        step = STEPS_S[window]
        first = now - WINDOWS_S[window]
        times = [t for t in _grid(first, now, step) if t >= self.began_at]
        if self.state == "empty":
            times = []
        values: dict[str, tuple[float | None, ...]] = {
            name: tuple(self.value(name, t) for t in times) for name in SERIES
        }
        turn = self._turn_at(now)
        for name, before, after in (
            ("num_prefill", 2, 3),
            ("num_mixed", 0, 1),
            ("num_decode", 4, 2),
        ):
            is_turned = self.load > 0
            values[name] = tuple(after if is_turned and t > turn else before for t in times)
        return Series(
            step_s=step,
            unix_s=tuple(times),
            values=values,
            decisions=tuple(e for e in self._events(now) if e.kind == "decision"),
        )

    def _turn_at(self, now: float) -> float:
        """When the balancer turned two nodes, the last time: a minute or two ago at least."""
        return now - (now - 60) % 300 - 60

    def _why_balance(self) -> str:
        if not self.load:
            return "The roles fit: nothing waits, and no role is above 70 % of its target."
        return (
            "needs 2.61 prefill and 1.92 decode nodes at the targets of the present traffic, has "
            "3.0 and 2.4: the most loaded role (prefill) is at 87 %"
        )

    def _verdict(self, index: int, now: float) -> ClassVerdict:
        name, ttft, tpot, target = TARGETS[index]
        verdict, stage, why, kept = verdict_of(self.state, index)
        is_used = verdict != "no traffic"
        share = (0.55, 0.42, 0.03)[index]
        return ClassVerdict(
            sla_class=name,
            ttft_ms=ttft,
            tpot_ms=tpot,
            attainment=target,
            verdict=verdict,
            explanation=why,
            limiting_stage=stage,
            budget_left=None if not is_used else 1 - (1 - kept) / (1 - target) * 0.55,
            windows={
                window: WindowVerdict(
                    num_ended=int(span * 40 * share) if is_used else 0,
                    num_attained=int(span * 40 * share * kept) if is_used else 0,
                    num_failed=0,
                    num_shed=int(span * 0.01) if is_used and kept < target else 0,
                    attainment=1 - (1 - kept) * scale if is_used else None,
                    burn_rate=(1 - kept) * scale / (1 - target) if is_used else None,
                )
                for window, span, scale in (
                    ("5m", 300, 1.0),
                    ("1h", 3600, 0.7),
                    ("3d", 259_200, 0.4),
                )
            },
            stages=self._stages(index, now) if is_used else NO_STAGES,
        )

    def _stages(self, index: int, now: float) -> StageTimes:
        hot = 3.4 if self.state == "death" else 1.0
        scale = (1.0, 1.9, 6.0)[index]
        queue = quantiles(38 * scale * hot, now, 1, tail=5)
        prefill = quantiles(118 * scale, now, 2)
        first = Quantiles(  # quantiles of a sum lie below the sum of quantiles, but for the median
            p50=queue.p50 + 1.03 * prefill.p50,
            p95=0.96 * (queue.p95 + prefill.p95),
            p99=0.92 * (queue.p99 + prefill.p99),
        )
        return StageTimes(
            queue=queue,
            prefill=prefill,
            transfer=quantiles(9 * scale, now, 3),
            decode_admission=quantiles(7 * scale * hot, now, 4, tail=4),
            ttft=first,
            tpot=quantiles(26 * (0.7 + 0.3 * hot), now, 6, tail=1.7),
            max_itl=quantiles(64 * hot, now, 7),
        )

    def _rates(self, now: float) -> Rates:
        def of(name: str) -> float:
            return self.value(name, now) or 0.0

        return Rates(
            requests=of("requests_per_s"),
            goodput=of("goodput_per_s"),
            output_tokens=of("output_tokens_per_s"),
            input_tokens=of("output_tokens_per_s") * 6.1,
            shed=of("shed_per_s") + (3.2 if self.state == "death" else 0.0),
            failed=0.0,
        )

    def _nodes(self, now: float) -> tuple[NodeView, ...]:
        if self.state == "empty":
            return ()
        turned = self.load > 0
        roles = (
            ["prefill"] * (3 if turned else 2)
            + ["mixed"] * turned
            + ["decode"] * (2 if turned else 4)
        )
        if self.state == "many":
            roles = ["prefill"] * 22 + ["mixed"] * 4 + ["decode"] * 38
        counts: dict[str, int] = {}
        nodes = []
        for seed, role in enumerate(roles):
            place = counts.get(role, 0)
            counts[role] = place + 1
            nodes.append(self._node(f"{role}-{place}", role, seed, now))
        return tuple(sorted(nodes, key=lambda n: n.node_id))

    def _node(self, name: str, role: str, seed: int, now: float) -> NodeView:
        is_dead = self.state == "death" and name == "decode-1"
        state = "down" if is_dead else "draining" if name in self.drained else "ok"
        if self.state == "many" and seed == 11:
            state = "slow"
        pages = _pages(seed, now, self.load)
        decodes, prefills = role != "prefill", role != "decode"
        load = 0.0 if is_dead else self.load * (0.75 + 0.4 * wobble(now, seed))
        return NodeView(
            node_id=name,
            role=role,
            state=state,
            weights=RoleWeights(
                prefill=float(prefills) * (0.4 if role == "mixed" else 1),
                decode=float(decodes) * (0.6 if role == "mixed" else 1),
            ),
            device="NVIDIA H200",
            epoch=7 + seed,
            heartbeat_age_s=8.3 if is_dead else 0.31,
            num_pages=NUM_PAGES,
            pages=pages,
            useful_share=0.93 - 0.04 * wobble(now, seed) if load else None,
            last_page_waste=0.07 + 0.04 * wobble(now, seed) if load else None,
            busy_share=min(1.0, load * 0.78),
            num_prefill_waiting=int(9 * load * prefills),
            num_prefill_tokens_waiting=int(9 * load * 1432 * prefills),
            num_decode_running=int(44 * load * decodes),
            num_decode_waiting=int(2 * load * decodes),
            num_transfers=int(4 * load),
            tokens_per_s=2210 * load * decodes,
            transfer_bytes_per_s=104e6 * load * prefills,
            num_transfers_done=18_204 + seed * 977,
            num_transfers_failed=2 if is_dead else 0,
            num_preempted=int(3 * decodes * (load > 1)),
            costs=NodeCosts(
                step_s=0.0061,
                prefill_token_s=4.1e-5,
                prefill_context_s=2.2e-9,
                decode_row_s=2.4e-4,
                decode_context_s=3.1e-8,
                error=0.043,
                num_steps=9120,
                transfer_s=0.0021,
                transfer_bytes_per_s=2.3e10,
            ),
        )

    def _live(self, now: float) -> tuple[LiveView, ...]:
        source = random.Random(int(now // 4))
        return tuple(
            LiveView(
                request_id=f"{source.getrandbits(128):032x}",
                gateway_id="gateway",
                tenant=source.choice(("search", "chat-web", "batch-jobs")),
                sla_class=source.choice(("interactive", "interactive", "standard")),
                age_s=source.random() ** 2 * 9,
                attempt=1 + (source.random() < 0.03),
                num_prompt_tokens=source.randint(40, 8000),
                prefill_node=f"prefill-{source.randint(0, 2)}" if i else None,
                decode_node=f"decode-{source.randint(0, 1)}" if i else None,
            )
            for i in range(14)
        )

    def _events(self, now: float) -> list[Event]:
        texts = EVENTS[:4] if not self.load else EVENTS
        base = self._turn_at(now) + 2
        events = [
            Event(number=i + 1, unix_s=max(self.began_at, base - 260 + i * 37), kind=k, text=t)
            for i, (k, t) in enumerate(texts)
        ]
        if self.state == "empty":
            return events[:1]
        if self.state == "death":
            events.append(
                Event(
                    number=20,
                    unix_s=base + 30,
                    kind="member",
                    text="node decode-1 is down: no heartbeat for 3.0 s",
                )
            )
        return events


def _grid(first: float, last: float, step: float) -> list[float]:
    start = first - first % step + step
    return [start + i * step for i in range(int((last - start) / step) + 1)]


def _pages(seed: int, now: float, load: float) -> PageCounts:
    active = int(NUM_PAGES * min(0.7, 0.5 * load * (0.7 + 0.5 * wobble(now, seed + 20))))
    small = int(90 * load * wobble(now, seed + 30, 9))
    cached = int(NUM_PAGES * 0.22)
    draining, quarantined = (24, 8) if load > 1.2 and seed == 4 else (0, 0)
    held = active + cached + small * 2 + small // 2 + draining + quarantined
    return PageCounts(
        free=NUM_PAGES - held,
        granted=small,
        filling=small,
        ready=small // 2,
        active=active,
        cached=cached,
        draining=draining,
        quarantined=quarantined,
    )
