"""Prefill policies: the order in which prompts run on a node."""
