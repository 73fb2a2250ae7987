"""The ledger as callers see it: submit a command and await its outcome; the reads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from credit_service.ledger.lanes import Lanes
    from credit_service.ledger.reads import Reads
    from credit_service.rules.commands import Command
    from credit_service.rules.model import Outcome
    from credit_service.rules.terms import Terms


class Ledger:
    """Gives commands to the lanes; `reads` reads the book."""

    def __init__(self, lanes: Lanes, reads: Reads, terms: Terms) -> None:
        """Takes what it works with.

        Args:
            lanes: the writers.
            reads: the readers.
            terms: prices and floor.
        """
        self._lanes = lanes
        self.reads = reads
        self.terms = terms

    def enqueue(self, command: Command, seconds: float) -> asyncio.Future[Outcome]:
        """Gives a command to its lane, which decides and writes it.

        Args:
            command: what to do.
            seconds: how long the caller waits for its batch to begin.

        Returns:
            A future, done after the COMMIT. It raises a Refusal where the rules said no,
            Unavailable where there is no final answer, and InternalError where the command failed
            in a way that no caller can fix.

        Raises:
            Overloaded: the lane is full.
            LedgerUnavailable: the service is stopping.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        return self._lanes.submit(command, deadline)
