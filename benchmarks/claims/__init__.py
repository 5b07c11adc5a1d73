"""Figures that the field quotes for scheduling techniques, measured here; see docs/claims.md."""
