"""Lets `python -m stripe_bridge` do what `stripe-bridge` does."""

from stripe_bridge.cli import main

main()
