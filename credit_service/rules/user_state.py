"""The state of a user in a batch: the part of the ledger about one user, as loaded and decided."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from credit_service.errors import BalanceLimitExceeded
from credit_service.fields import BALANCE_MAX
from credit_service.rules import limits
from credit_service.rules.commands import Keyed
from credit_service.rules.grant_values import GrantChange
from credit_service.rules.model import (
    Account,
    Entry,
    Hold,
    KeptKey,
    Payment,
    Policy,
    PolicyChange,
    Spent,
)
from credit_service.rules.top_up_values import NO_TOP_UPS, TopUps

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from credit_service.rules.commands import Command
    from credit_service.rules.grant_values import BurnKey, Grant
    from credit_service.rules.model import EntryType

_NO_METADATA: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True)
class UserState:
    """The part of the ledger about one user.

    Everything that commands refer to is loaded before the first is decided. The entries and changes
    that they post are added, so that later commands of the batch find them as if they had been
    loaded.

    Attributes:
        now: the time of the batch, by the database's clock.
        loaded: the account as it was loaded; zero where there is no row yet.
        account: the account as it is now.
        number: the number of the batch's transaction in the order of the feed.
        by_key: by idempotency key, the entry that the call with the key made or was answered with.
        kept_calls: the RPCs of those keys whose call was answered with the entry of another call.
        spends: entries that refunds refer to, by seq.
        holds: the holds that commands refer to, and those that the batch ended, by seq.
        ended: the entries that ended holds, by the hold's seq.
        posted: the new entries, in order.
        refunded: the seqs of spends whose refunded sum changed.
        kept_keys: the new keys of calls that were answered with the entry of another call.
        changed_holds: the seqs of holds that were made or changed.
        policy_changes: changes of the policy.
        grants: by seq, the grants that commands, holds and entries refer to, those that are due,
            and the others that have a rest, in burn order as far as the batch may draw on them.
        pins: by the seq of an open hold, how much of which grant it has set aside.
        drawn: by the seq of an entry, its changes of grants: of entries that are refunded.
        reversed: by the seq of a purchase, the changes that its reversals made, in order: of every
            loaded grant of which reversals return more than they have counted.
        grant_changes: the new changes of grants, in order.
        grants_before: for each of the new changes, and for each other change of a grant, the seq
            and the grant as it was.
        top_ups: its top-ups, as far as commands need them.
        more_due: whether more is due than the batch settles. Then nothing is decided about the
            account: it is as it was at the instant of the last due hold or grant that the batch
            settled.
    """

    now: datetime
    loaded: Account
    account: Account
    number: int
    by_key: dict[str, Entry] = field(default_factory=dict)
    kept_calls: dict[str, str] = field(default_factory=dict)
    spends: dict[int, Spent] = field(default_factory=dict)
    holds: dict[int, Hold] = field(default_factory=dict)
    ended: dict[int, Entry] = field(default_factory=dict)
    posted: list[Entry] = field(default_factory=list)
    refunded: set[int] = field(default_factory=set)
    kept_keys: list[KeptKey] = field(default_factory=list)
    changed_holds: set[int] = field(default_factory=set)
    policy_changes: list[PolicyChange] = field(default_factory=list)
    grants: dict[int, Grant] = field(default_factory=dict)
    pins: dict[int, dict[int, int]] = field(default_factory=dict)
    drawn: dict[int, list[GrantChange]] = field(default_factory=dict)
    reversed: dict[int, list[GrantChange]] = field(default_factory=dict)
    grant_changes: list[GrantChange] = field(default_factory=list)
    grants_before: list[tuple[int, Grant | None]] = field(default_factory=list)
    top_ups: TopUps = NO_TOP_UPS
    more_due: bool = False
    _order: list[BurnKey] | None = field(default=None, repr=False, compare=False)

    @property
    def is_new(self) -> bool:
        """Whether the user had no account row when it was loaded."""
        return self.loaded.last_updated is None

    @property
    def is_changed(self) -> bool:
        """Whether the account's row must be written."""
        return self.account is not self.loaded

    @property
    def tx(self) -> int:
        """The place in the feed of the batch's changes of the user; it never falls as seq rises.

        The batch may have its number from before it waited for this user's row.
        """
        return max(self.number, self.loaded.tx)

    @property
    def changed_grants(self) -> set[int]:
        """The seqs of the grants that were made or changed."""
        return {seq for seq, _ in self.grants_before}

    @property
    def time(self) -> datetime:
        """The time of the batch, but never before the account's last change."""
        last = self.account.last_updated
        return last if last is not None and last > self.now else self.now

    def entry(
        self,
        command: Command,
        *,
        kind: EntryType,
        amount: int,
        balance_change: int = 0,
        held_change: int = 0,
        requested_amount: int | None = None,
        floor: int | None = None,
        operation: str | None = None,
        quantity: int | None = None,
        unit_cost: int | None = None,
        price_version: str | None = None,
        related_seq: int | None = None,
        payment: Payment | None = None,
        hold_seq: int | None = None,
        description: str = "",
        reference: str = "",
    ) -> Entry:
        """Makes the user's next entry; `post` adds it to the ledger.

        A keyed command adds its key, metadata, description and reference.

        Raises:
            BalanceLimitExceeded: the balance would leave the range that the ledger allows.
        """
        account = self.account
        metadata = _NO_METADATA
        key = None
        if isinstance(command, Keyed):
            key, metadata = command.idempotency_key, command.metadata
            description, reference = command.description, command.reference
        balance_after = account.balance + balance_change
        if abs(balance_after) > BALANCE_MAX:
            raise BalanceLimitExceeded(account.balance, BALANCE_MAX)
        seq = account.seq + 1
        # By position, because naming the fields takes twice as long.
        return Entry(
            account.user_id,
            seq,
            kind,
            command.call,
            amount,
            requested_amount,
            balance_change,
            held_change,
            balance_after,
            account.held + held_change,
            floor,
            description,
            self.time,
            operation,
            quantity,
            unit_cost,
            price_version,
            reference,
            metadata,
            related_seq,
            key,
            command.caller,
            payment,
            seq if kind == "hold" else hold_seq,
        )

    def post(self, entry: Entry, *, counted: int = 0) -> None:
        """Adds an entry to the ledger as this batch sees it.

        Args:
            entry: the user's next entry.
            counted: credits that count against the spend limits.
        """
        account = self.account
        self.account = account.after(
            entry, limits.count(account.counters, counted, self.now), self.tx
        )
        self.posted.append(entry)
        self.spends[entry.seq] = Spent(entry, 0)
        if entry.idempotency_key is not None:
            self.by_key[entry.idempotency_key] = entry

    def keep_key(self, command: Keyed, entry: Entry) -> None:
        """Records the key of a command that is answered with the entry of another call."""
        if command.validate_only:
            return
        key, call = command.idempotency_key, command.call
        self.by_key[key], self.kept_calls[key] = entry, call
        self.kept_keys.append(KeptKey(entry.user_id, key, entry.seq, call))

    def put_refunded(self, spend: Spent) -> None:
        """Records that more of a spend was refunded."""
        self.spends[spend.entry.seq] = spend
        self.refunded.add(spend.entry.seq)

    def put_hold(self, hold: Hold) -> None:
        """Records a hold that was made or changed; the account counts the open ones."""
        before = self.holds.get(hold.seq)
        self.holds[hold.seq] = hold
        self.changed_holds.add(hold.seq)
        opened = (hold.state == "held") - (before is not None and before.state == "held")
        if opened:
            open_holds = self.account.open_holds + opened
            expiry = self.account.next_hold_expiry
            if open_holds == 0:
                expiry = None
            elif hold.state == "held" and (expiry is None or hold.expires_at < expiry):
                expiry = hold.expires_at
            self.account = self.account._replace(open_holds=open_holds, next_hold_expiry=expiry)

    def put_policy(self, policy: Policy, caller: str) -> None:
        """Records a changed policy, and who changed it."""
        account, time = self.account, self.time
        change = account.policy_changes + 1
        self.account = account._replace(
            last_updated=time, policy=policy, policy_changes=change, tx=self.tx
        )
        self.policy_changes.append(PolicyChange(account.user_id, change, time, caller, policy))

    def burn_order(self) -> list[BurnKey]:
        """The keys of all loaded grants that have a rest, in burn order; the last part is the seq.

        It is kept sorted, so that a draw costs time only for the grants that it touches.
        """
        if self._order is None:
            self._order = sorted(grant.burn_key() for grant in self.grants.values() if grant.rest)
        return self._order

    def put_grant(self, grant: Grant) -> None:
        """Records a grant that was made or changed; the account keeps the sums."""
        before, account = self.grants.get(grant.seq), self.account
        self.grants_before.append((grant.seq, before))
        self._replace_grant(before, grant)
        was_open = before is not None and before.open
        remaining, pinned = (before.remaining, before.pinned) if before else (0, 0)
        open_grants = account.open_grants + grant.open - was_open
        next_lapse, expires = account.next_lapse, grant.expire_time
        if not open_grants:
            next_lapse = None
        elif grant.open and expires and (next_lapse is None or expires < next_lapse):
            next_lapse = expires
        self.account = account._replace(
            in_grants=account.in_grants + grant.remaining - remaining,
            pinned=account.pinned + grant.pinned - pinned,
            open_grants=open_grants,
            grants_made=account.grants_made + (before is None),
            next_lapse=next_lapse,
        )

    def change_grant(
        self,
        entry_seq: int,
        seq: int,
        *,
        remaining: int = 0,
        pinned: int = 0,
        hold_seq: int | None = None,
        expire_time: datetime | None = None,
        opens: bool = False,
        lapses: bool = False,
        lapsed_at: datetime | None = None,
        reversed_seq: int | None = None,
    ) -> None:
        """Records a change of a grant.

        Args:
            entry_seq: the entry that makes it.
            seq: the grant's.
            remaining: credits that come, or go (below 0).
            pinned: credits that the hold sets aside, or no longer does (below 0).
            hold_seq: the hold; None where `pinned` is 0.
            expire_time: the new expiry; None leaves it as it is.
            opens: whether spends and holds may draw on it from now on.
            lapses: whether the credits lapse or are revoked.
            lapsed_at: when they lapse.
            reversed_seq: the purchase whose reversals take them or give them back.
        """
        before = self.grants[seq]
        left = before.remaining + remaining
        grant = before._replace(
            remaining=left,
            pinned=before.pinned + pinned,
            expire_time=expire_time or before.expire_time,
            open=(opens or before.open) and left > 0,
            lapsed=before.lapsed - remaining if lapses else before.lapsed,
        )
        self.put_grant(grant)
        user_id, after = grant.user_id, grant.expire_time
        change = GrantChange(
            user_id,
            entry_seq,
            seq,
            hold_seq,
            remaining,
            pinned,
            left,
            grant.pinned,
            after,
            lapsed_at,
            reversed_seq,
        )
        self.grant_changes.append(change)
        self.drawn.setdefault(entry_seq, []).append(change)
        if reversed_seq is not None:
            self.reversed.setdefault(reversed_seq, []).append(change)
        if pinned and hold_seq is not None:
            self._put_pin(hold_seq, seq, pinned)

    def undo(self, mark: Mark) -> None:
        """Removes the effects of spends since the mark: entries, draws and top-up requests."""
        for entry in self.posted[mark.posted :]:
            del self.spends[entry.seq]
            self.drawn.pop(entry.seq, None)
            if entry.idempotency_key is not None:
                del self.by_key[entry.idempotency_key]
        del self.posted[mark.posted :]
        for seq, before in reversed(self.grants_before[mark.grants_before :]):
            if before is not None:
                self._replace_grant(self.grants[seq], before)
        del self.grants_before[mark.grants_before :]
        del self.grant_changes[mark.grant_changes :]
        self.account, self.top_ups = mark.account, mark.top_ups

    def mark(self) -> Mark:
        """The state now, for `undo`."""
        return Mark(
            self.account,
            len(self.posted),
            len(self.grants_before),
            len(self.grant_changes),
            self.top_ups,
        )

    def _replace_grant(self, before: Grant | None, grant: Grant) -> None:
        self.grants[grant.seq] = grant
        order = self._order
        if order is None:
            return
        old = before.burn_key() if before is not None and before.rest else None
        new = grant.burn_key() if grant.rest else None
        if old != new:
            if old is not None:
                del order[bisect_left(order, old)]
            if new is not None:
                insort(order, new)

    def _put_pin(self, hold_seq: int, seq: int, pinned: int) -> None:
        pins = self.pins.setdefault(hold_seq, {})
        pins[seq] = pins.get(seq, 0) + pinned
        if not pins[seq]:
            del pins[seq]
        if not pins:
            del self.pins[hold_seq]


class Mark(NamedTuple):
    """A saved state of a user: the account, and how much had been posted and changed."""

    account: Account
    posted: int
    grants_before: int
    grant_changes: int
    top_ups: TopUps
