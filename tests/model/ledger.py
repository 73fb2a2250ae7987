"""A second, very simple implementation of the ledger: lists of entries, and sums over them.

Written from the contract and not from the service's rules, so that the two can disagree. One
request at a time, and only entries and keys are kept: balances, the rest of a spend and the
credits that a payment bought are added up for each request.
"""

from dataclasses import dataclass
from uuid import UUID

AMOUNT_LIMIT = 1_000_000_000_000
BALANCE_LIMIT = 1_000_000_000_000_000


@dataclass(frozen=True, kw_only=True)
class Request:
    """A write as its caller makes it; `note` is everything that is not compared."""

    call: str
    user: UUID
    key: str
    amount: int | None = None
    operation: str | None = None
    quantity: int | None = None
    transaction: int | None = None
    payment: str | None = None
    expected_cost: int | None = None
    note: str = ""
    validate_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry, as far as a caller sees it; its time cannot be known beforehand."""

    seq: int
    type: str
    amount: int
    balance_change: int
    balance_after: int
    key: str
    note: str = ""
    operation: str | None = None
    quantity: int | None = None
    unit_cost: int | None = None
    price_version: str | None = None
    transaction: int | None = None
    payment: str | None = None


@dataclass(frozen=True)
class Prices:
    """Credits per unit by operation, the version of the list, and the floor of every account."""

    unit_costs: dict[str, int]
    version: str
    floor: int


@dataclass(frozen=True)
class Done:
    """The entry that answers a request, and whether an earlier request made it."""

    entry: Entry
    replayed: bool


@dataclass(frozen=True)
class Refused:
    """A refusal by its reason and facts."""

    reason: str
    facts: dict[str, object]


class ModelLedger:
    """The entries of every user, each with the request that made it.

    `kept` has the requests that were answered with another request's entry.
    """

    def __init__(self, users):
        self.books: dict[UUID, list[tuple[Request, Entry]]] = {user: [] for user in users}
        self.kept: dict[UUID, list[tuple[Request, Entry]]] = {user: [] for user in users}
        self.payments_of_the_deleted: set[str] = set()

    def balance(self, user):
        return sum(entry.balance_change for _, entry in self.books[user])

    def open(self, user, key, balance):
        """Adopts a balance from before the ledger."""
        kind = "grant" if balance > 0 else "reversal"
        entry = Entry(
            seq=1,
            type=kind,
            amount=abs(balance),
            balance_change=balance,
            balance_after=balance,
            key=key,
        )
        self.books[user].append((Request(call="adopted", user=user, key=key), entry))

    def delete(self, user):
        """Removes a user with all entries; payments stay recorded."""
        for request, _ in self.books.pop(user):
            if request.payment is not None:
                self.payments_of_the_deleted.add(request.payment)
        self.kept.pop(user)

    def as_of(self, user, seq, others, kept):
        """The state when this user had `seq` entries and the `kept` keys, and `others` theirs."""
        view = ModelLedger(())
        view.books = {**others.books, user: self.books[user][:seq]}
        view.kept = kept
        view.payments_of_the_deleted = others.payments_of_the_deleted
        return view

    def copy(self):
        other = ModelLedger(())
        other.books = {user: list(book) for user, book in self.books.items()}
        other.kept = {user: list(kept) for user, kept in self.kept.items()}
        other.payments_of_the_deleted = set(self.payments_of_the_deleted)
        return other

    def take(self, request, prices):
        """Answers a request and writes its entry."""
        answer = self.answer(request, prices)
        if isinstance(answer, Done) and not request.validate_only:
            if answer.replayed:
                self.keep(request, answer.entry)
            else:
                self.books[request.user].append((request, answer.entry))
        return answer

    def keep(self, request, entry):
        """Keeps the key of a request that was answered with another request's entry."""
        if request.key not in self.keys(request.user):
            self.kept[request.user].append((request, entry))

    def keys(self, user):
        """Every request of the user that was answered OK, by its key, with its answer."""
        answered = [*self.books.get(user, ()), *self.kept.get(user, ())]
        return {first.key: (first, entry) for first, entry in answered}

    def answer(self, request, prices):
        """Answers a request: first the key, then the state, then the price, then the balance."""
        earlier = self.keys(request.user).get(request.key)
        if earlier is not None:
            return _repeated(request, *earlier)
        if request.call == "PurchaseCredits":
            return self._purchase(request)
        if request.user not in self.books:
            return Refused("USER_NOT_FOUND", {"user_id": str(request.user)})
        if request.call == "SpendCredits":
            return self._spend(request, prices)
        return self._refund(request)

    def _purchase(self, request):
        ref = request.payment
        if ref is not None:
            if ref in self.payments_of_the_deleted:
                return Refused("USER_DELETED", {"payment_ref": ref})
            for user, book in self.books.items():
                for first, entry in book:
                    if first.payment != ref:
                        continue
                    if user != request.user:
                        return Refused("PAYMENT_REUSED", {"payment_ref": ref, "field": "user_id"})
                    if entry.amount != request.amount:
                        return Refused("PAYMENT_REUSED", {"payment_ref": ref, "field": "amount"})
                    return Done(entry, replayed=True)
        if request.user not in self.books:
            return Refused("USER_NOT_FOUND", {"user_id": str(request.user)})
        return self._entry(request, "purchase", request.amount, request.amount, payment=ref)

    def _spend(self, request, prices):
        cost, priced = request.amount, {}
        if request.operation is not None:
            unit_cost = prices.unit_costs.get(request.operation)
            if unit_cost is None:
                return Refused("INVALID_REQUEST", {"field": "charge.operation"})
            cost = unit_cost * request.quantity
            if cost > AMOUNT_LIMIT:
                return Refused("INVALID_REQUEST", {"field": "charge.quantity"})
            priced = {
                "operation": request.operation,
                "quantity": request.quantity,
                "unit_cost": unit_cost,
                "price_version": prices.version,
            }
        if request.expected_cost not in {None, cost}:
            return Refused("PRICE_CHANGED", {"cost": cost, "price_version": prices.version})
        balance = self.balance(request.user)
        if balance - cost < prices.floor:
            facts = {
                "required": cost,
                "available": balance,
                "held": 0,
                "shortfall": prices.floor - (balance - cost),
            }
            return Refused("INSUFFICIENT_CREDITS", facts)
        return self._entry(request, "spend", cost, -cost, **priced)

    def _refund(self, request):
        amount, operation = request.amount, None
        if request.transaction is not None:
            book = self.books[request.user]
            named = [entry for _, entry in book if entry.seq == request.transaction]
            if not named:
                lookup = f"{request.user}-{request.transaction}"
                return Refused("TRANSACTION_NOT_FOUND", {"lookup": lookup})
            (spend,) = named
            if spend.type != "spend":
                return Refused("INVALID_REQUEST", {"field": "transaction_id"})
            left = spend.amount - sum(e.amount for _, e in book if e.transaction == spend.seq)
            amount = left if amount is None else amount
            if left == 0 or amount > left:
                return Refused("REFUND_EXCEEDS_SPEND", {"refundable": left})
            operation = spend.operation
        return self._entry(
            request,
            "refund",
            amount,
            amount,
            operation=operation,
            transaction=request.transaction,
        )

    def _entry(self, request, kind, amount, change, **rest):
        balance = self.balance(request.user)
        if not -BALANCE_LIMIT <= balance + change <= BALANCE_LIMIT:
            return Refused("BALANCE_LIMIT_EXCEEDED", {"balance": balance, "limit": BALANCE_LIMIT})
        entry = Entry(
            seq=len(self.books[request.user]) + 1,
            type=kind,
            amount=amount,
            balance_change=change,
            balance_after=balance + change,
            key=request.key,
            note=request.note,
            **rest,
        )
        return Done(entry, replayed=False)


def _repeated(request, first, entry):
    compared = {
        "call": (request.call, first.call),
        "amount": (request.amount, first.amount),
        "operation": (request.operation, first.operation),
        "quantity": (request.quantity, first.quantity),
        "transaction_id": (request.transaction, first.transaction),
        "payment": (request.payment, first.payment),
    }
    for field, (now, then) in compared.items():
        if now != then:
            facts = {"field": field, "transaction_id": f"{request.user}-{entry.seq}"}
            return Refused("IDEMPOTENCY_KEY_REUSED", facts)
    return Done(entry, replayed=True)
