"""Keeps all that the fake knows in a file, so that it can be killed and started again.

What is on its way when it is killed is delivered once more, as Stripe would.
"""

import pickle
from pathlib import Path

from .stripe import Stripe


def keep(stripe: Stripe, path: Path) -> None:
    """Writes everything anew; a kill leaves the old file or the new one."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(pickle.dumps(stripe))
    fresh.replace(path)


def kept(path: Path) -> Stripe:
    """Reads what the fake before knew, all that it had not delivered in the outbox."""
    stripe = pickle.loads(path.read_bytes())
    assert isinstance(stripe, Stripe)
    return stripe
