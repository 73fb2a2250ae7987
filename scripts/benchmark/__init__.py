"""Measures the service beside a rival that does one transaction per call, and beside itself."""
