"""All mutations."""

from scripts.mutation import clients, coordinator, fences, gateway, handoff, node, pages, wire

MUTATIONS = (
    *gateway.GUARDS,
    *clients.GUARDS,
    *coordinator.GUARDS,
    *handoff.GUARDS,
    *fences.GUARDS,
    *pages.GUARDS,
    *node.GUARDS,
    *wire.GUARDS,
)
