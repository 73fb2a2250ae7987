"""Lets `python -m credit_service` do what `credit-service` does."""

from credit_service.cli import main

main()
