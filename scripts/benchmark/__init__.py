"""Measures the service against a rival that does one transaction per call, and against itself."""
