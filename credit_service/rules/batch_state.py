"""The state of a batch: the part of the ledger that it needs, as loaded and then as decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from credit_service.errors import UserNotFound
from credit_service.rules.commands import Expire
from credit_service.rules.model import Account, Entry, Purchased, Returned, Reversal
from credit_service.rules.user_state import UserState

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from credit_service.rules.commands import Command


@dataclass(slots=True)
class BatchState:
    """The ledger as a batch sees it.

    Attributes:
        now: the time of the batch, by the database's clock.
        users: the part of every known user of the batch.
        number: the number of its transaction in the order of the feed; 0 where nothing is written.
        purchases: the earlier purchases of the batch's payments, by payment.
        bought: payments that this batch credits.
        reversals: the recorded revisions that the batch names, by reference and revision.
        latest_reversals: the highest revision of each reversal that the batch names.
        returned: the returns by reversals of the batch's payments, by payment.
        new_reversals: reversals that this batch records.
    """

    now: datetime
    users: dict[UUID, UserState]
    number: int = 0
    purchases: dict[str, Purchased] = field(default_factory=dict)
    bought: dict[str, Purchased] = field(default_factory=dict)
    reversals: dict[tuple[str, int], Reversal] = field(default_factory=dict)
    latest_reversals: dict[str, Reversal] = field(default_factory=dict)
    returned: dict[str, Returned] = field(default_factory=dict)
    new_reversals: list[Reversal] = field(default_factory=list)

    @classmethod
    def of(cls, now: datetime, *accounts: Account, number: int = 0) -> BatchState:
        """A state with these accounts and nothing else loaded yet."""
        state = cls(now, {}, number)
        for account in accounts:
            state.add(account)
        return state

    def add(self, account: Account) -> None:
        """Adds an account that was loaded."""
        self.users[account.user_id] = UserState(self.now, account, account, self.number)

    @property
    def posted(self) -> list[Entry]:
        """All new entries; those of a user in order."""
        return [entry for user in self.users.values() for entry in user.posted]

    def user(self, user_id: UUID) -> UserState:
        """Finds the part of a user.

        Raises:
            UserNotFound: the user is unknown.
        """
        user = self.users.get(user_id)
        if user is None:
            raise UserNotFound(str(user_id))
        return user

    def postpones(self, command: Command) -> bool:
        """Whether a command must wait for another batch, because more is due than this one ends."""
        user = self.users.get(command.user_id)
        return user is not None and user.more_due and not isinstance(command, Expire)

    def put_purchase(self, payment_ref: str, entry: Entry) -> None:
        """Records a credited payment."""
        bought = Purchased(entry.user_id, entry.seq, entry.amount, entry)
        self.purchases[payment_ref] = self.bought[payment_ref] = bought

    def add_reversal(self, reversal: Reversal) -> None:
        """Adds a revision that was loaded or is recorded now."""
        self.reversals[reversal.reversal_ref, reversal.revision] = reversal
        latest = self.latest_reversals.get(reversal.reversal_ref)
        if latest is None or reversal.revision > latest.revision:
            self.latest_reversals[reversal.reversal_ref] = reversal

    def put_reversal(self, reversal: Reversal, returned: Returned) -> None:
        """Records a new revision, and the returns of its payment's reversals with it."""
        self.add_reversal(reversal)
        self.new_reversals.append(reversal)
        self.returned[reversal.payment_ref] = returned
