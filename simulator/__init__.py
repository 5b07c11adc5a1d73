"""Runs the production cores under a virtual clock, with a network and faults drawn from a seed."""
