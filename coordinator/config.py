"""What an operator may set on a coordinator; flags, variables and file keys follow from it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from scheduling.routing.catalogue import DEFAULT_POLICY, PLACEMENT_POLICIES
from scheduling.sla import DEFAULT_CLASSES
from tandem.addresses import DASHBOARD_PORT
from tandem.config import Help


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorConfig:
    """Run the coordinator: membership, placement and SLA accounting of one deployment."""

    host: Annotated[str, Help("address to listen on")] = "127.0.0.1"
    port: Annotated[int, Help("port to listen on; 0 picks a free one")] = 7300
    keys: Annotated[
        str | None, Help("keys folder (tandem keys init); without it, loopback only")
    ] = None
    allow_unauthenticated: Annotated[
        bool, Help("listen on an address that other machines reach, without keys")
    ] = False
    lease_s: Annotated[float, Help("seconds without a heartbeat after which a node is down")] = 3.0
    heartbeat_s: Annotated[float, Help("seconds between heartbeats, told to nodes")] = 0.5
    placement_policy: Annotated[
        str, Help(f"how nodes are chosen: {', '.join(sorted(PLACEMENT_POLICIES))}")
    ] = DEFAULT_POLICY
    placement_option: Annotated[
        tuple[str, ...], Help("option of the placement policy, as KEY=VALUE")
    ] = ()
    max_queued_tokens_per_node: Annotated[
        int, Help("prompt tokens that may wait on a prefill node before requests are refused")
    ] = 65_536
    max_queued_requests_per_node: Annotated[
        int, Help("requests that may wait on a decode node before more are refused")
    ] = 256
    max_held_requests: Annotated[
        int, Help("requests that may wait here for a node with room; 0 refuses them at once")
    ] = 1024
    early_rejection: Annotated[
        Literal["on", "off"], Help("refuse at once what is predicted to miss its SLA targets")
    ] = "on"
    early_rejection_tolerance: Annotated[
        float, Help("times its target that a prediction may be before the request is refused")
    ] = 1.0
    balance: Annotated[
        Literal["off", "observe", "on"],
        Help("change the roles of nodes as the load asks; observe: only say what would be done"),
    ] = "observe"
    balance_dwell_s: Annotated[float, Help("seconds between two changes of roles, at least")] = 30.0
    migrate: Annotated[
        Literal["on", "off"],
        Help("let running requests leave decode nodes that are short of KV pages for others"),
    ] = "off"
    sla_classes: Annotated[
        tuple[str, ...], Help("SLA classes, each as name:ttft_ms:tpot_ms:attainment")
    ] = DEFAULT_CLASSES
    default_class: Annotated[str, Help("SLA class of requests that name none")] = "standard"
    vllm_metrics: Annotated[
        bool, Help("GET /metrics also under vLLM's names, for tools that know those")
    ] = False
    dashboard_host: Annotated[
        str, Help("address of the operators' dashboard; loopback, or with keys any")
    ] = "127.0.0.1"
    dashboard_port: Annotated[int, Help("its port; 0 picks a free one, -1: no dashboard")] = (
        DASHBOARD_PORT
    )
    history: Annotated[
        str | None, Help("file that keeps what the dashboard shows over restarts, for three days")
    ] = None
    event_log: Annotated[
        str | None, Help("file or folder to record every event and decision in, for scripts/replay")
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Help("least severe log lines shown")
    ] = "info"
    log_format: Annotated[Literal["text", "json"], Help("of log lines, on standard error")] = "text"

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        for name in ("max_queued_tokens_per_node", "max_queued_requests_per_node"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"{flag} is {getattr(self, name)}, but must be at least 1")
        if not -1 <= self.dashboard_port < 65536:
            raise ValueError(f"dashboard-port is {self.dashboard_port}: give a port, 0 or -1")
        if not 1 <= self.balance_dwell_s < 1e6:
            raise ValueError(f"balance-dwell-s is {self.balance_dwell_s:g}: give 1 or more; try 30")
        if self.max_held_requests < 0:
            raise ValueError(f"max-held-requests is {self.max_held_requests}: give 0 or more")
        if self.early_rejection_tolerance <= 0:
            raise ValueError(
                f"early-rejection-tolerance is {self.early_rejection_tolerance:g}, but must be "
                "above 0; 1 refuses what is predicted to be late at all"
            )
