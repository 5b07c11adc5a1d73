"""HTTP attacks that take minutes: `scripts/test_attacks`."""
