"""Batch policies: what every step of a node computes."""
