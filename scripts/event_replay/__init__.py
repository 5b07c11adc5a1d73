"""Replays recorded events on the pure cores (scripts/replay)."""
