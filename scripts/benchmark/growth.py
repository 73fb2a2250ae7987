"""Rows of long books: a call must not take longer because there are more entries."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmark import book
from benchmark.calls import PAGE_ENTRIES
from benchmark.lines import Line, at_most, compared
from benchmark.numbering import LONG, SHORT

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmark.children import Server
    from benchmark.measuring import Sample
    from benchmark.testbed import Testbed

_SIZES = (10**3, 10**5, 10**6)
_SIZES_FULL = (*_SIZES, 10**7)
_IN_FLIGHT = 16
_CALLS = {"history page": "history", "balance read": "balance", "spend": "spend"}
_BOOKS = {
    "of the user": (LONG, 1),  # the user whom all these entries belong to
    "in all": (SHORT, 1),  # another user, with few entries, beside the long one
}


def long_books(testbed: Testbed) -> list[Line]:
    """Measures calls on databases of growing books, each with a service of its own."""
    sizes = _SIZES_FULL if testbed.extent.full else _SIZES
    servers: dict[int, Server] = {}
    loads: dict[str, Callable[[float], Sample]] = {}
    with ExitStack() as services:
        for size in sizes:
            database = f"book_{size}"
            testbed.add_database(database)
            testbed.fill(LONG, 1, size, database)
            testbed.fill(SHORT, 1, PAGE_ENTRIES + 1, database)
            url = book.database_url(testbed.cluster.service_url, database)
            service = testbed.another_service(database, database_url=url)
            servers[size] = services.enter_context(service)
        # Loads that are compared run one after the other.
        for what, call in _CALLS.items():
            for whose, users in _BOOKS.items():
                for size, server in servers.items():
                    name = _name(what, size, whose)
                    loads[name] = testbed.load(server, call, _IN_FLIGHT, users=users)
        samples = testbed.in_turns(loads, part=0.5)
    smallest, *longer = sizes
    return [
        compared(
            "books",
            samples,
            _name(what, size, whose),
            _name(what, smallest, whose),
            target=at_most(1.3),
            cost=True,
        )
        for what in _CALLS
        for whose in _BOOKS
        for size in longer
    ]


def _name(what: str, size: int, whose: str) -> str:
    return f"{what}, {size:,} entries {whose}"
