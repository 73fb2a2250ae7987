"""How long storms and property tests last: short for every change, longer on request."""

import os

LONG = "TEST_LONG"
FULL = "TEST_FULL"


def unless_long(usual, long):
    """Returns the first, or the second if the tests were started with --long or --full."""
    return long if LONG in os.environ else usual


def extent(usual, in_full):
    """Returns the first, or the second if the tests were started with --full."""
    return in_full if FULL in os.environ else usual
