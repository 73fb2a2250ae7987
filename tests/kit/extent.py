"""How long the storms last: as long as every change can wait for, or in full."""

import os

FULL = "TEST_FULL"


def extent(usual, in_full):
    """Returns the first, or the second if the tests were started with --full."""
    return in_full if FULL in os.environ else usual
