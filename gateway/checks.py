"""What `python -m gateway --check` looks at."""

from gateway.config import GatewayConfig
from gateway.lengths import make_lengths
from gateway.tenant_file import TenantFile
from tandem.checks import Check, folder_check, port_check, tried
from tandem.key_checks import bearer_checks, key_checks
from tandem.process_checks import model_checks


def check(config: GatewayConfig) -> list[Check]:
    """Model, ports, keys, tenants, folders; the coordinator is not asked."""

    def tenants() -> str:
        TenantFile(config.tenants)
        return config.tenants or "none: all callers are one"

    def lengths() -> str:
        make_lengths(config).close()
        return config.length_predictor or "a table of recent lengths"

    return [
        *model_checks(config.model, config.max_model_len),
        port_check("port", config.host, config.port),
        port_check("http port", config.http_host, config.http_port),
        *key_checks(
            config.keys,
            "gateway",
            config.name,
            host=config.host,
            allow_unauthenticated=config.allow_unauthenticated,
        ),
        tried("tenants", tenants),
        tried("length predictor", lengths),
        *bearer_checks(config.keys),
        *folder_check("event log", config.event_log),
        *folder_check("record dir", config.record_dir),
    ]
