"""The rulebook: what each command does to an account. Pure functions; nothing here waits.

The law: `held >= 0` always, and after any spend `balance - held >= min_balance`. The floor is a
rule of the spend and is kept on its entry; an account itself may lie below it, in debt. Every verb
is two numbers, a change of balance and a change of held:

    purchase n   +n  0
    spend n      -n  0
    refund n     +n  0

A command is decided in this order, and the order is meaning: its idempotency key, the state of what
it refers to, price and expected cost, the balance. So the repeat of a paid spend succeeds on an
empty account. A refusal is raised and leaves no trace.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from credit_service.errors import (
    BalanceLimitExceeded,
    IdempotencyKeyReused,
    InsufficientCredits,
    InvalidRequest,
    PaymentReused,
    PriceChanged,
    RefundExceedsSpend,
    TransactionNotFound,
    UserDeleted,
    UserNotFound,
)
from credit_service.model import (
    BALANCE_MAX,
    Account,
    Command,
    Entry,
    Outcome,
    Payment,
    Purchase,
    Purchased,
    Refund,
    Spend,
    Spent,
    transaction_id,
)

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from credit_service.pricing import PriceList

REFUNDABLE_TYPES = ("spend",)


@dataclass(frozen=True, slots=True)
class Terms:
    """What the configuration decides: the price list and the floor of every account, in credits."""

    prices: PriceList
    min_balance: int

    def shortfall(self, account: Account, cost: int) -> int:
        """How many credits the account lacks to pay `cost` and keep the floor; 0 if none."""
        return max(0, cost + self.min_balance - account.available)


@dataclass(slots=True)
class Desk:
    """The part of the book that a batch has before it, as locked and recalled, and then as decided.

    Attributes:
        now: the time of the batch, by the database's clock.
        accounts: the account of every known user of the batch; zero where there is no row yet.
        by_key: entries under the batch's keys.
        spends: entries that refunds refer to, by user and seq.
        purchases: what the batch's payments bought before, by payment.
        posted: the new entries, in order.
        refunded: spends whose refunded sum changed.
        bought: payments credited anew.
    """

    now: datetime
    accounts: dict[UUID, Account]
    by_key: dict[tuple[UUID, str], Entry] = field(default_factory=dict)
    spends: dict[tuple[UUID, int], Spent] = field(default_factory=dict)
    purchases: dict[str, Purchased] = field(default_factory=dict)
    posted: list[Entry] = field(default_factory=list)
    refunded: dict[tuple[UUID, int], Spent] = field(default_factory=dict)
    bought: dict[str, Purchased] = field(default_factory=dict)

    def post(self, entry: Entry) -> None:
        """Takes an entry into the book as this batch sees it; later commands recall it."""
        user_id = entry.user_id
        self.accounts[user_id] = Account(
            user_id, entry.balance_after, entry.held_after, entry.seq, entry.timestamp
        )
        self.posted.append(entry)
        if entry.idempotency_key is not None:
            self.by_key[user_id, entry.idempotency_key] = entry
        if entry.type in REFUNDABLE_TYPES:
            self.spends[user_id, entry.seq] = Spent(entry, refunded=0)
        if entry.related_seq is not None:
            settled = user_id, entry.related_seq
            spent = self.spends[settled]
            spent = replace(spent, refunded=spent.refunded + entry.amount)
            self.spends[settled] = self.refunded[settled] = spent
        if entry.payment is not None:
            bought = Purchased(user_id, entry.seq, entry.amount, entry)
            self.purchases[entry.payment.ref] = self.bought[entry.payment.ref] = bought


def decide(desk: Desk, command: Command, terms: Terms) -> Outcome:
    """Decides one command and, unless it only validates, posts its entry on the desk.

    Returns:
        The entry, the account after it, and whether an earlier call had made the entry.

    Raises:
        Refusal: what the contract lists for the call; the desk is as it was.
    """
    earlier = desk.by_key.get((command.user_id, command.idempotency_key))
    if earlier is not None:
        _require_same_request(command, earlier)
        return Outcome(earlier, desk.accounts[command.user_id], replayed=True)
    match command:
        case Purchase():
            outcome = _purchase(desk, command)
        case Spend():
            outcome = _spend(desk, command, terms)
        case Refund():
            outcome = _refund(desk, command)
        case _:
            raise TypeError(command)
    if not outcome.replayed and not command.validate_only:
        desk.post(outcome.entry)
        return replace(outcome, account=desk.accounts[command.user_id])
    return outcome


# What makes two requests the same, in the order in which a difference is named.
_COMPARED = ("call", "amount", "operation", "quantity", "transaction_id", "payment")


def _require_same_request(command: Command, earlier: Entry) -> None:
    charged = earlier.quantity is not None
    recorded = (
        earlier.call,
        earlier.requested_amount,
        earlier.operation if charged else None,
        earlier.quantity,
        earlier.related_seq,
        earlier.payment.ref if earlier.payment else None,
    )
    for name, asked, found in zip(_COMPARED, _request(command), recorded, strict=True):
        if asked != found:
            raise IdempotencyKeyReused(name, transaction_id(earlier.user_id, earlier.seq))


def _request(command: Command) -> tuple[object, ...]:
    match command:
        case Purchase(amount=amount, payment=payment):
            return command.call, amount, None, None, None, payment.ref if payment else None
        case Spend(amount=amount, operation=operation, quantity=quantity):
            return command.call, amount, operation, quantity, None, None
        case Refund(amount=amount, spend_seq=spend_seq):
            return command.call, amount, None, None, spend_seq, None
        case _:
            raise TypeError(command)


def _purchase(desk: Desk, command: Purchase) -> Outcome:
    payment = command.payment
    earlier = desk.purchases.get(payment.ref) if payment is not None else None
    if payment is not None and earlier is not None:
        if earlier.entry is None:
            raise UserDeleted(payment.ref)
        if earlier.user_id != command.user_id:
            raise PaymentReused(payment.ref, "user_id")
        if earlier.amount != command.amount:
            raise PaymentReused(payment.ref, "amount")
        return Outcome(earlier.entry, desk.accounts[command.user_id], replayed=True)
    account = _account(desk, command)
    entry = _entry(
        desk,
        command,
        kind="purchase",
        amount=command.amount,
        requested_amount=command.amount,
        balance_change=command.amount,
        payment=payment,
    )
    return Outcome(entry, account, replayed=False)


def _spend(desk: Desk, command: Spend, terms: Terms) -> Outcome:
    account = _account(desk, command)
    cost, unit_cost = command.amount, None
    if cost is None:
        assert command.operation is not None  # noqa: S101  # the shape was checked: one or the other
        assert command.quantity is not None  # noqa: S101
        line = terms.prices.price(command.operation, command.quantity, "charge")
        cost, unit_cost = line.cost, line.unit_cost
    if command.expected_cost is not None and command.expected_cost != cost:
        raise PriceChanged(cost, terms.prices.version)
    shortfall = terms.shortfall(account, cost)
    if shortfall > 0:
        raise InsufficientCredits(
            required=cost, available=account.available, held=account.held, shortfall=shortfall
        )
    entry = _entry(
        desk,
        command,
        kind="spend",
        amount=cost,
        requested_amount=command.amount,
        balance_change=-cost,
        floor=terms.min_balance,
        operation=command.operation,
        quantity=command.quantity,
        unit_cost=unit_cost,
        price_version=terms.prices.version if unit_cost is not None else None,
    )
    return Outcome(entry, account, replayed=False)


def _refund(desk: Desk, command: Refund) -> Outcome:
    account = _account(desk, command)
    operation = None
    amount = command.amount
    if command.spend_seq is not None:
        spent = desk.spends.get((command.user_id, command.spend_seq))
        if spent is None:
            raise TransactionNotFound(transaction_id(command.user_id, command.spend_seq))
        if spent.entry.type not in REFUNDABLE_TYPES:
            raise InvalidRequest(
                "transaction_id", f"names a {spent.entry.type}; only a spend can be refunded."
            )
        refundable = spent.entry.amount - spent.refunded
        if amount is None:
            amount = refundable
        if amount > refundable or refundable == 0:
            raise RefundExceedsSpend(refundable)
        operation = spent.entry.operation
    assert amount is not None  # noqa: S101  # the shape was checked: a spend or an amount
    entry = _entry(
        desk,
        command,
        kind="refund",
        amount=amount,
        requested_amount=command.amount,
        balance_change=amount,
        operation=operation,
        related_seq=command.spend_seq,
    )
    return Outcome(entry, account, replayed=False)


def _account(desk: Desk, command: Command) -> Account:
    account = desk.accounts.get(command.user_id)
    if account is None:
        raise UserNotFound(str(command.user_id))
    return account


def _entry(
    desk: Desk,
    command: Command,
    *,
    kind: str,
    amount: int,
    requested_amount: int | None,
    balance_change: int,
    floor: int | None = None,
    operation: str | None = None,
    quantity: int | None = None,
    unit_cost: int | None = None,
    price_version: str | None = None,
    related_seq: int | None = None,
    payment: Payment | None = None,
) -> Entry:
    account = desk.accounts[command.user_id]
    balance_after = account.balance + balance_change
    if abs(balance_after) > BALANCE_MAX:
        raise BalanceLimitExceeded(account.balance, BALANCE_MAX)
    now = desk.now
    if account.last_updated is not None and account.last_updated > now:
        now = account.last_updated
    return Entry(
        user_id=command.user_id,
        seq=account.seq + 1,
        type=kind,
        call=command.call,
        amount=amount,
        requested_amount=requested_amount,
        balance_change=balance_change,
        held_change=0,
        balance_after=balance_after,
        held_after=account.held,
        floor=floor,
        description=command.description,
        timestamp=now,
        operation=operation,
        quantity=quantity,
        unit_cost=unit_cost,
        price_version=price_version,
        reference=command.reference,
        metadata=command.metadata,
        related_seq=related_seq,
        idempotency_key=command.idempotency_key,
        caller=command.caller,
        payment=payment,
    )
