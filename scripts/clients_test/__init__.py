"""Other clients against this server: what `scripts/test_clients` runs."""
