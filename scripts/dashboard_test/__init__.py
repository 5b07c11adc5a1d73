"""Drives the dashboard in a headless browser, against a real deployment and made-up ones."""
