"""Drives the dashboard in a headless browser, against a real deployment and against made-up ones."""
