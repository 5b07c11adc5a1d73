"""What `tandem doctor` says of a host and of a deployment, from what was found. Pure."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tandem.checks import Check
from tandem.messages.membership import ClusterStatus, LinkReport, NodeStatus

MIN_SHARED_MEMORY_BYTES = 1 << 30
MIN_DESCRIPTORS = 4096
OLD_BEAT_S = 3.0
SLOW_BYTES_PER_S = 0.1e9
REQUIRED = ("torch", "pyzmq", "msgspec", "numpy", "transformers", "uvicorn", "starlette")
OPTIONAL = ("triton", "cupy-cuda13x", "llguidance", "opentelemetry-sdk", "uvloop")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """A host as it was found; versions by distribution, None where one is not installed."""

    python: str
    versions: Mapping[str, str | None]
    libzmq: str
    has_curve: bool
    gpus: Sequence[str]
    driver: str | None
    num_cpus: int
    free_memory_bytes: int
    shared_memory_bytes: int
    max_descriptors: int
    clock_source: str | None


@dataclass(frozen=True, slots=True)
class Reached:
    """What came of dialling an address from here."""

    address: str
    problem: str | None = None
    milliseconds: float = 0.0


def check_host(facts: HostFacts) -> list[Check]:
    """Versions, device, memory, limits, clock."""
    return [
        Check("python", "ok", facts.python),
        *_check_versions(facts),
        Check("libzmq", "ok", facts.libzmq)
        if facts.has_curve
        else Check("libzmq", "warn", f"{facts.libzmq}, without CURVE", "keys need pyzmq's wheel"),
        _check_device(facts),
        Check(
            "memory", "ok", f"{facts.num_cpus} CPUs, {facts.free_memory_bytes / 1e9:.1f} GB free"
        ),
        _check_shared_memory(facts),
        _check_descriptors(facts),
        _check_clock(facts),
    ]


def _check_versions(facts: HostFacts) -> list[Check]:
    missing = [name for name in REQUIRED if facts.versions.get(name) is None]
    found = [f"{n} {facts.versions[n]}" for n in REQUIRED if facts.versions.get(n)]
    extras = [f"{n} {facts.versions[n]}" for n in OPTIONAL if facts.versions.get(n)]
    absent = [name for name in OPTIONAL if facts.versions.get(name) is None]
    checks = [Check("packages", "ok", ", ".join(found))]
    if missing:
        advice = "scripts/setup installs them, or pip install tandem-serve"
        checks = [Check("packages", "fail", f"missing: {', '.join(missing)}", advice)]
    text = ", ".join(extras) or "none"
    checks.append(Check("extras", "ok", text + (f"; not here: {', '.join(absent)}" * bool(absent))))
    return checks


def _check_device(facts: HostFacts) -> Check:
    if not facts.gpus:
        return Check("device", "ok", "cpu; no NVIDIA device is here")
    text = f"{', '.join(facts.gpus)}; driver {facts.driver or 'unknown'}"
    if facts.versions.get("cupy-cuda13x") is None:
        advice = "pip install 'tandem-serve[cuda]' moves pages between processes on GPUs"
        return Check("device", "warn", f"{text}; without cupy", advice)
    return Check("device", "ok", text)


def _check_shared_memory(facts: HostFacts) -> Check:
    text = f"{facts.shared_memory_bytes / 1e9:.1f} GB"
    if facts.shared_memory_bytes < MIN_SHARED_MEMORY_BYTES:
        advice = "in a container give it more (--shm-size 8g): torch and GPU libraries use it"
        return Check("/dev/shm", "warn", text, advice)
    return Check("/dev/shm", "ok", text)


def _check_descriptors(facts: HostFacts) -> Check:
    if facts.max_descriptors < MIN_DESCRIPTORS:
        advice = "each client and each stream takes one: ulimit -n 65536, or LimitNOFILE= in a unit"
        return Check("open files", "warn", f"at most {facts.max_descriptors}", advice)
    return Check("open files", "ok", f"at most {facts.max_descriptors}")


def _check_clock(facts: HostFacts) -> Check:
    if facts.clock_source in (None, "tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource"):
        return Check("clock", "ok", facts.clock_source or "the kernel does not say which")
    advice = "reading it takes a system call each time: see clocksource= of the kernel"
    return Check("clock", "warn", facts.clock_source, advice)


def check_transports(speeds: Mapping[str, float]) -> list[Check]:
    """Of this host, as measured between two pools here."""
    checks = []
    for transport, speed in speeds.items():
        text = f"{speed / 1e6:,.0f} MB/s between two pools of this host"
        if speed < SLOW_BYTES_PER_S:
            advice = "below 100 MB/s: is this machine busy?"
            checks.append(Check(transport, "warn", text, advice))
        else:
            checks.append(Check(transport, "ok", text))
    return checks


def check_deployment(status: ClusterStatus, reached: Sequence[Reached]) -> list[Check]:
    """Members, addresses from here, links between nodes."""
    names = [node.node_id for node in status.nodes]
    checks = [_check_roles(status)]
    checks += [_check_beat(f"node {n.node_id}", n.heartbeat_age_s) for n in status.nodes]
    checks += [_check_beat(f"gateway {g.gateway_id}", g.heartbeat_age_s) for g in status.gateways]
    checks += [_check_reached(name, reach) for name, reach in zip(names, reached, strict=True)]
    checks += check_addresses(status.nodes)
    for node in status.nodes:
        checks += _check_links(node)
    return checks


def _check_roles(status: ClusterStatus) -> Check:
    num_prefill = sum(node.weights.prefill > 0 for node in status.nodes)
    num_decode = sum(node.weights.decode > 0 for node in status.nodes)
    text = f"{num_prefill} nodes prefill, {num_decode} decode, {len(status.gateways)} gateways"
    if num_prefill and num_decode and status.gateways:
        return Check("members", "ok", text)
    return Check("members", "fail", text, "nothing can be served: start what is missing")


def _check_beat(subject: str, age_s: float) -> Check:
    text = f"heard by the coordinator {age_s:.1f} s ago"
    if age_s <= OLD_BEAT_S:
        return Check(subject, "ok", text)
    return Check(subject, "fail", text, "its process hangs, or the way to the coordinator is cut")


def _check_reached(name: str, reached: Reached) -> Check:
    subject = f"port of {name}"
    if reached.problem is None:
        return Check(subject, "ok", f"{reached.address} in {reached.milliseconds:.1f} ms from here")
    advice = "open the port for gateways and other nodes, or set --advertised-host there"
    return Check(subject, "fail", f"{reached.address}: {reached.problem}", advice)


def check_addresses(nodes: Sequence[NodeStatus]) -> list[Check]:
    """Loopback addresses among others: such a node cannot be reached from other hosts."""
    local = [node for node in nodes if is_loopback(node.control_address)]
    if len(local) == len(nodes):
        return []
    advice = "start it with --host and --advertised-host that other hosts reach"
    return [
        Check(f"address of {node.node_id}", "fail", f"{node.control_address} is loopback", advice)
        for node in local
    ]


def is_loopback(address: str) -> bool:
    """Whether `tcp://host:port` is only reached on its own host."""
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_links(node: NodeStatus) -> list[Check]:
    checks = [_check_link(node.node_id, link) for link in node.links]
    if not node.num_links and node.weights.prefill > 0 and node.weights.decode == 0:
        text = "no link to a decode node yet: the first request makes one (--gateway sends some)"
        checks.append(Check(f"links of {node.node_id}", "ok", text))
    if node.num_links > len(node.links):
        text = f"these are the worst {len(node.links)} of {node.num_links}"
        checks.append(Check(f"links of {node.node_id}", "ok", text))
    return checks


def _check_link(node_id: str, link: LinkReport) -> Check:
    subject = f"{node_id} -> {link.node_id}"
    if link.transport is None:
        advice = "both ends need a transport in common, and open ports for pages"
        return Check(subject, "fail", link.explanation, advice)
    text = f"{link.transport}, {link.bytes_per_s / 1e6:,.0f} MB/s ({link.explanation})"
    return Check(subject, "warn" if link.bytes_per_s < SLOW_BYTES_PER_S else "ok", text)
