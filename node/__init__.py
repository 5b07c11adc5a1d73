"""A node without its device: page ledger, prefix index, residents and the step loop."""
