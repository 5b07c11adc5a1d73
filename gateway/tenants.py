"""Tenants: whose key a request came under, its weight, its rate, its classes. Pure.

The file is TOML: `[tenants.NAME]` with `clients` (names of client keys) and, where wanted, weight,
requests_per_s, burst, max_live, classes. Who is in no list belongs to `default`, which may have a
table too.
"""

import math
import tomllib
from collections.abc import Mapping
from typing import Annotated

import msgspec

from gateway.admission import Rejected
from tandem.messages.client import Submit
from tandem.messages.common import Name

DEFAULT_TENANT = "default"
CLIENT_KEYS = "client/"


class Tenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file. `burst` requests may come at once; without `classes` all are open."""

    clients: tuple[Name, ...] = ()
    weight: Annotated[float, msgspec.Meta(gt=0, le=1e6)] = 1.0
    requests_per_s: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    burst: Annotated[int, msgspec.Meta(ge=1, le=10**6)] | None = None
    max_live: Annotated[int, msgspec.Meta(ge=1)] | None = None
    classes: tuple[Name, ...] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tenants: dict[Name, Tenant]


def parse_tenants(text: str) -> dict[str, Tenant]:
    """Tenants by name. Raises ValueError that names what is wrong."""
    tenants = msgspec.convert(tomllib.loads(text), _File).tenants
    owner: dict[str, str] = {}
    for name, tenant in tenants.items():
        for client in tenant.clients:
            if client in owner:
                raise ValueError(f"client {client} is of both {owner[client]} and {name}")
            owner[client] = name
        if tenant.burst is not None and tenant.requests_per_s is None:
            raise ValueError(f"tenant {name} has a burst and no requests_per_s")
    return tenants


class TokenBucket:
    """Allows `rate` per second in the long run, and `burst` at once."""

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = float(burst)
        self._at = now

    def take(self, now: float) -> float:
        """Take one; else in how many seconds there will be one, above 0, and nothing is taken."""
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level >= 1 - 1e-9:
            self._level -= 1
            return 0.0
        return (1 - self._level) / self._rate

    def adopt(self, other: "TokenBucket") -> None:
        """Go on from another one's level: new settings are no new burst."""
        self._level, self._at = min(other._level, self._burst), other._at


class Tenants:
    """The file's content in force. Times are the caller's monotonic clock."""

    def __init__(self, tenants: Mapping[str, Tenant], now: float) -> None:
        self._tenants: dict[str, Tenant] = {}
        self._owner: dict[str, str] = {}
        self._buckets: dict[str, TokenBucket] = {}
        self.replace(tenants, now)

    def replace(self, tenants: Mapping[str, Tenant], now: float) -> None:
        """Other settings from now on."""
        before = self._buckets
        self._tenants = {DEFAULT_TENANT: Tenant(), **tenants}
        self._owner = {c: name for name, tenant in tenants.items() for c in tenant.clients}
        self._buckets = {}
        for name, tenant in self._tenants.items():
            if tenant.requests_per_s is None:
                continue
            burst = tenant.burst or max(1, math.ceil(tenant.requests_per_s))
            bucket = self._buckets[name] = TokenBucket(tenant.requests_per_s, burst, now)
            if name in before:
                bucket.adopt(before[name])

    def of_key(self, key: str | None) -> str:
        """The tenant of a client's key, as `Server.key_name` names it."""
        client = "" if key is None else key.removeprefix(CLIENT_KEYS)
        return self._owner.get(client, DEFAULT_TENANT)

    def weight(self, name: str) -> float:
        """Its part of the capacity, beside others'; a tenant of an older file counts as 1."""
        return self._get(name).weight

    def max_live(self, name: str) -> int | None:
        """How many requests it may have in flight, where that is limited."""
        return self._get(name).max_live

    def with_class(self, name: str, submit: Submit) -> Submit:
        """The request with a class that its tenant may use. Raises Rejected.

        Where classes are listed the first is the tenant's default, and own targets are not open.
        """
        classes = self._get(name).classes
        if not classes:
            return submit
        if submit.ttft_ms is not None or submit.tpot_ms is not None:
            raise Rejected(
                "invalid_request",
                f"tenant {name} may use the SLA classes {', '.join(classes)}, not own targets",
            )
        if submit.sla_class is None:
            return msgspec.structs.replace(submit, sla_class=classes[0])
        if submit.sla_class not in classes:
            raise Rejected(
                "unknown_sla_class",
                f"tenant {name} may not use the SLA class {submit.sla_class!r}: use one of "
                f"{', '.join(classes)}",
            )
        return submit

    def take_rate(self, name: str, now: float) -> None:
        """Count a request against its tenant's rate. Raises Rejected with the exact wait."""
        bucket = self._buckets.get(name)
        wait_s = 0.0 if bucket is None else bucket.take(now)
        if wait_s > 0:
            raise Rejected(
                "rate_limited",
                f"tenant {name} may send {self._get(name).requests_per_s:g} requests per second: "
                f"try again in {wait_s:.3f} s",
                wait_s,
            )

    def _get(self, name: str) -> Tenant:
        return self._tenants.get(name, self._tenants[DEFAULT_TENANT])
