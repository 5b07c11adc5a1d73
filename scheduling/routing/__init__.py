"""Coordinator policies: who serves a request, who waits, who is refused."""
