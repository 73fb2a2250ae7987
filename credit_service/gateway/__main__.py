"""Lets `python -m credit_service.gateway` do what `credit-gateway` does."""

from credit_service.gateway.cli import main

main()
