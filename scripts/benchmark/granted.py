"""Rows of accounts with grants: the cost of a spend when there are credits that expire."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from benchmark import book
from benchmark.lines import Line, at_most, compared
from benchmark.numbering import GRANTED

if TYPE_CHECKING:
    from benchmark.testbed import Testbed

_USERS = 1_000
_IN_FLIGHT = 100
_WITHOUT = "SpendCredits, accounts without grants"
# The number of open grants of an account, and how many times as long a spend may take.
_GRANTS = {10: 1.3, 100: 2.0}


def spends(testbed: Testbed) -> list[Line]:
    """Measures spends of accounts that differ only in their open grants."""
    loads = {}
    for number, grants in enumerate((0, *_GRANTS)):
        first = GRANTED + number * _USERS
        testbed.fill(first, _USERS)
        if grants:
            expire_time = datetime.now(UTC) + timedelta(days=30)
            owner_url = testbed.cluster.owner_url
            asyncio.run(book.give_grants(owner_url, first, _USERS, grants, expire_time))
        load = testbed.load(testbed.service, "spend", _IN_FLIGHT, users=(first, _USERS))
        loads[_name(grants)] = load
    samples = testbed.in_turns(loads)
    return [
        compared("grants", samples, _name(grants), _WITHOUT, target=at_most(most), cost=True)
        for grants, most in _GRANTS.items()
    ]


def _name(grants: int) -> str:
    return f"SpendCredits, {grants} open grants" if grants else _WITHOUT
