"""A small fake Stripe: the API that the bridge reads, and webhooks that go wrong on purpose.

It runs as a process of its own, `python -m fake_stripe`, and keeps everything in memory. Its
behaviour follows https://docs.stripe.com (api, webhooks, testing) and the types of Stripe's SDK.
"""
