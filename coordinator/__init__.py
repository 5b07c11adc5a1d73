"""Decides who serves what: membership, admission, routing and the operators' view; never torch."""
