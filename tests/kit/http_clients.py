"""Clients of the servers that tests run on this machine, none of which speaks TLS."""

import httpx


def http_client(**options: object) -> httpx.AsyncClient:
    """An ordinary client of httpx, without the certificates, which take 30 ms to load."""
    return httpx.AsyncClient(verify=False, **options)
