"""Keeps the state of the fake in a file, so that it can be killed and started again.

An event that is being delivered when it is killed is delivered once more, as by Stripe.
"""

import pickle
from pathlib import Path

from .stripe import Stripe


def keep(stripe: Stripe, path: Path) -> None:
    """Writes the whole state; a kill leaves the old file or the new one."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(pickle.dumps(stripe))
    fresh.replace(path)


def kept(path: Path) -> Stripe:
    """Reads the state of an earlier fake; its undelivered events go into the outbox."""
    stripe = pickle.loads(path.read_bytes())
    assert isinstance(stripe, Stripe)
    return stripe
