"""Two hosts that are network namespaces: `scripts/test_netns`."""
