"""All mutations."""

from scripts.mutation import (
    admission,
    clients,
    coordinator,
    fences,
    gateway,
    handoff,
    node,
    pages,
    wire,
)

MUTATIONS = (
    *gateway.GUARDS,
    *clients.GUARDS,
    *coordinator.GUARDS,
    *admission.GUARDS,
    *handoff.GUARDS,
    *fences.GUARDS,
    *pages.GUARDS,
    *node.GUARDS,
    *wire.GUARDS,
)
