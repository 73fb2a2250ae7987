"""The lives of payments at the fake, in the model and in the book: paid, refunded, disputed."""

from dataclasses import dataclass

from kit.databases import Database
from kit.http_clients import http_client
from kit.stripe_fakes import KEY, FakeStripe
from model.stripe import Payment

# Credits and price of one unit, as in the catalogue.
LISTED_CREDITS, LISTED_AMOUNT = 30, 700

HELD = {"pending", "requires_action", "succeeded"}  # refunds of these states hold their money


@dataclass(frozen=True)
class Refund:
    """A refund of a share (in percent) of the rest, its first state and a later one."""

    share: int
    status: str = "succeeded"
    later: str | None = None

    async def happen(self, fake: FakeStripe, payment: Payment, paid_by: str) -> None:
        if not payment.refundable:
            return
        amount = max(1, payment.refundable * self.share // 100)
        made = (await fake.refund(paid_by, amount, self.status))["id"]
        payment.refunds[made] = amount if self.status in HELD else 0
        if self.later is not None and self.status in HELD:
            await fake.change_refund(made, self.later)
            payment.refunds[made] = amount if self.later in HELD else 0


@dataclass(frozen=True)
class Dispute:
    """A dispute of a share (in percent) of the charge, and the moves of its money."""

    share: int
    moves: tuple[str, ...]

    async def happen(self, fake: FakeStripe, payment: Payment, paid_by: str) -> None:
        amount, held = max(1, payment.amount * self.share // 100), 0
        at_once = self.moves[:1] == ("withdraw",)
        made = (await fake.dispute(paid_by, amount, withdraw=at_once))["id"]
        for place, move in enumerate(self.moves):
            match move:
                case "withdraw":
                    if place:
                        await fake.do("withdraw", id=made)
                    held = amount
                case "win":
                    await fake.win(made)
                    held = 0
                case "lose":
                    await fake.lose_dispute(made)
                case "lose a part":
                    await fake.lose_dispute(made, returned=held // 3)
                    held -= held // 3
                case _:
                    await fake.do("change_dispute", id=made, status=move)
        payment.disputes[made] = held


DISPUTES = (
    ("warning_under_review", "warning_closed"),
    ("withdraw",),
    ("warning_under_review", "withdraw", "lose"),
    ("withdraw", "under_review", "win"),
    ("withdraw", "lose"),
    ("withdraw", "lose a part"),
    ("withdraw", "win", "withdraw"),
    ("withdraw", "win", "withdraw", "win"),
)

# Each payment and refund of these makes two events; the others' payments make one.
TOLD_TWICE = ("at once", "later", "failed", "waiting")
EVERY = (*TOLD_TWICE, "by app", "free", "listed", "monthly", "of others")


@dataclass(frozen=True)
class Life:
    """How a payment is made, its credits and money, and its refunds and disputes."""

    how: str
    credits: int
    amount: int
    steps: tuple[Refund | Dispute, ...] = ()

    async def play(self, fake: FakeStripe, user: object, price: str = "") -> Payment:
        """Plays it at the fake; `price` is the price that the catalogue lists."""
        paid_by, payment = await self._paid(fake, user, price)
        if payment.paid and payment.amount:
            for step in self.steps:
                await step.happen(fake, payment, paid_by)
        return payment

    async def _paid(self, fake: FakeStripe, user: object, price: str) -> tuple[str, Payment]:
        match self.how:
            case "at once":
                intent = await fake.purchase(user, self.credits, self.amount)
            case "of others":
                intent, user = await fake.purchase(amount=self.amount), None
            case "by app":
                metadata = {
                    "credit_user_id": str(user), "credits": str(self.credits), "credits_v": "1",
                }  # fmt: skip
                made = await fake.do("payment", amount=self.amount, metadata=metadata)
                intent = made["id"]
            case "free":
                made = await fake.session(
                    user, self.credits, self.amount, amount_discount=self.amount
                )
                await fake.pay_session(made["id"])
                return made["id"], Payment(f"stripe:{made['id']}", user, self.credits, 0, paid=True)
            case "listed" | "monthly":
                return await self._listed(fake, user, price)
            case _:
                made = await fake.session(user, self.credits, self.amount)
                intent = (await fake.pay_session(made["id"], when="later"))["payment_intent"]
                if self.how != "waiting":
                    await fake.settle_session(made["id"], succeeds=self.how == "later")
        paid = self.how not in {"failed", "waiting"}
        return intent, Payment(f"stripe:{intent}", user, self.credits, self.amount, paid=paid)

    async def _listed(self, fake: FakeStripe, user: object, price: str) -> tuple[str, Payment]:
        quantity = 1 + self.credits % 3
        lines = [{"price": price, "quantity": quantity}]
        metadata = {"credit_user_id": str(user)}
        if self.how == "monthly":
            paid_by = (await fake.invoice(lines, metadata=metadata))["id"]
        else:
            paid_by = await fake.purchase(
                line_items=lines, metadata=metadata, payment_intent_data={}
            )
        bought, amount = quantity * LISTED_CREDITS, quantity * LISTED_AMOUNT
        return paid_by, Payment(f"stripe:{paid_by}", user, bought, amount, paid=True)


async def booked(database: Database) -> dict[str, int]:
    """The book's credits of every payment: those bought less those reversed."""
    rows = await database.fetch(
        "SELECT bought.payment_ref, bought.amount,"
        " coalesce(sum(taken.balance_change), 0) AS change"
        " FROM credit_transactions AS bought LEFT JOIN credit_transactions AS taken"
        " ON bought.user_id = taken.user_id AND bought.seq = taken.related_seq"
        " WHERE bought.type = 'purchase' AND bought.payment_ref IS NOT NULL"
        " GROUP BY bought.user_id, bought.seq"
    )
    found = {row["payment_ref"]: row["amount"] + int(row["change"]) for row in rows}
    assert len(found) == len(rows), "a payment is in the ledger twice"
    return found


async def events_as_sent(fake: FakeStripe, since: int = 0) -> list[dict]:
    """Every event created since then, newest first, exactly as an endpoint receives it."""
    asked, found, more = {"created[gte]": since, "limit": 100}, [], True
    async with http_client(headers={"Authorization": f"Bearer {KEY}"}) as http:
        while more:
            page = (await http.get(f"{fake.url}/v1/events", params=asked)).json()
            found += page["data"]
            more = page["has_more"]
            asked["starting_after"] = found[-1]["id"] if found else None
    return found
