"""All mutations."""

from scripts.mutation import (
    admission,
    clients,
    coordinator,
    dashboard,
    fences,
    gateway,
    handoff,
    node,
    pages,
    roles,
    wire,
)

MUTATIONS = (
    *gateway.GUARDS,
    *clients.GUARDS,
    *coordinator.GUARDS,
    *admission.GUARDS,
    *dashboard.GUARDS,
    *handoff.GUARDS,
    *fences.GUARDS,
    *pages.GUARDS,
    *node.GUARDS,
    *roles.GUARDS,
    *wire.GUARDS,
)
