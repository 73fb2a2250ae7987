"""A small Stripe of our own: the API that the bridge reads, and webhooks that go wrong on purpose.

It runs as a process of its own, `python -m fake_stripe`, and keeps everything in memory. What the
real one does is taken from https://docs.stripe.com (api, webhooks, testing) and from the types of
Stripe's SDK.
"""
