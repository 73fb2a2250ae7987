"""The Stripe bridge: turns Stripe's events into calls of the credit service."""
