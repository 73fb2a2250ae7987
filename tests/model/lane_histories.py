"""Random histories of an account with grants, given to a lane of the service."""

from datetime import timedelta

from kit.clock import move_clock
from kit.commands import ask, grant, hold, keyed, purchase, refund, reverse, spend
from model.drawn_grants import PAID_MINOR

from credit_service.errors import CreditError, Refusal
from credit_service.rules.commands import (
    Adjust,
    Capture,
    Expire,
    Extend,
    Life,
    Release,
    RevokeGrant,
    Rollover,
)

MINUTE = 60


class History:
    """Gives a history to a lane, a minute for each of its seconds."""

    def __init__(self, database, clerk, user):
        self.database = database
        self.clerk = clerk
        self.user = user
        self.made = {"hold": [], "spent": [], "grant": [], "payment": []}

    async def tell(self, step):
        if step.seconds:
            await move_clock(self.database, self.user, step.seconds * MINUTE)
        command = self._command(step)
        if command is None:
            return
        [answer] = await ask(self.clerk, command)
        if isinstance(answer, CreditError):
            assert isinstance(answer, Refusal), answer
        elif not isinstance(answer, BaseException):
            self._remember(step, answer.entry)
        else:
            raise answer

    def _remember(self, step, entry):
        if entry is None:
            return
        if step.call == "hold":
            self.made["hold"].append(entry.seq)
        elif entry.type in {"spend", "capture"}:
            self.made["spent"].append(entry.seq)
        elif step.call in {"purchase", "grant"}:
            self.made["grant"].append(entry.seq)
            if step.fields.get("payment"):
                self.made["payment"].append(self._ref(step.fields["payment"]))

    def _ref(self, payment):
        return f"{self.user} {payment}"

    def _of(self, kind, step):
        made = self.made[kind]
        return made[-1 - step.of % min(len(made), 4)] if made else None

    def _command(self, step):
        user, fields = self.user, step.fields
        amount = fields.get("amount")
        named = {
            **dict.fromkeys(("capture", "release", "extend"), "hold"),
            "refund": "spent",
            "revoke": "grant",
            "reverse": "payment",
        }.get(step.call)
        of = named and self._of(named, step)
        if named and of is None:
            return None
        payment, rollover = fields.get("payment"), fields.get("rollover")
        making = {
            "purchase": lambda: purchase(
                user,
                amount,
                ref=payment and self._ref(payment),
                life=_life(fields, dated=rollover is not None),
                rollover=rollover and Rollover(*rollover),
            ),
            "grant": lambda: grant(
                user, amount, life=_life(fields), paid=fields.get("paid", False)
            ),
            "spend": lambda: spend(user, amount),
            "adjust": lambda: keyed(
                Adjust, user, amount=amount, allow_debt=fields["allow_debt"], description="test"
            ),
            "hold": lambda: hold(user, amount, _seconds(fields["ttl"])),
            "capture": lambda: keyed(
                Capture,
                user,
                hold_seq=of,
                amount=amount,
                quantity=None,
                allow_overage=fields["overage"],
            ),
            "release": lambda: keyed(Release, user, hold_seq=of),
            "extend": lambda: Extend(
                user_id=user,
                caller="test",
                hold_seq=of,
                ttl=timedelta(seconds=_seconds(fields["ttl"])),
            ),
            "refund": lambda: refund(user, of, amount),
            "revoke": lambda: keyed(RevokeGrant, user, grant_seq=of),
            "reverse": lambda: reverse(
                user,
                of,
                f"{of} {fields['reversal']}",
                fields["revision"],
                fields["minor"],
                paid_minor=PAID_MINOR,
            ),
            "look": lambda: None,
        }
        return making[step.call]()


def _seconds(length):
    """The seconds for a duration of a history; the longest, a day, is an hour here."""
    return min(length, MINUTE) * MINUTE


def _life(fields, *, dated=False):
    lasts = fields.get("lasts", MINUTE if dated else None)
    if lasts is not None and lasts <= 0:
        lasts = 1
    valid_for = None if lasts is None else timedelta(seconds=_seconds(lasts))
    return Life(valid_for=valid_for, priority=fields.get("priority", 50))


async def recorded(clerk, database, user):
    """Records what is due until nothing is."""
    due = (
        "SELECT FROM user_credits WHERE user_id = $1"
        " AND (next_hold_expiry <= now() OR next_lapse <= now())"
    )
    while await database.fetch(due, user):
        await ask(clerk, Expire(user_id=user, caller="test"))
