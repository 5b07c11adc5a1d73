"""Dashboards, alert rules and docs/metrics.md, written from the table in tandem/metrics.py."""
