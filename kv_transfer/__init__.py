"""Moves KV pages between nodes: hand-off state machines, leases, fences and transports."""
