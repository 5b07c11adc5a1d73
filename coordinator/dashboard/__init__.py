"""The operators' dashboard: history in a file, snapshots, routes. Nobody waits for it."""
