"""What `python -m coordinator --check` looks at."""

from coordinator.config import CoordinatorConfig
from coordinator.core import Coordinator
from tandem.checks import Check, folder_check, port_check, tried
from tandem.key_checks import bearer_checks, key_checks
from tandem.keys import COORDINATOR


def check(config: CoordinatorConfig) -> list[Check]:
    """Ports, keys, classes and policies, folders."""

    def core() -> str:
        Coordinator(config, incarnation=1, now=0.0)
        return f"{', '.join(text.partition(':')[0] for text in config.sla_classes)}"

    return [
        port_check("port", config.host, config.port),
        port_check("dashboard port", config.dashboard_host, config.dashboard_port),
        *key_checks(
            config.keys,
            *COORDINATOR,
            host=config.host,
            allow_unauthenticated=config.allow_unauthenticated,
        ),
        tried("SLA classes", core),
        *bearer_checks(config.keys),
        *folder_check("history", config.history),
        *folder_check("event log", config.event_log),
    ]
