"""The effects of movements on grants, as rows of a table: a short history, and what is left."""

from dataclasses import dataclass, replace
from datetime import timedelta

from kit.hold_tables import capture, hold, release
from kit.rule_tables import ALICE, NOON, TERMS, purchase, refund, spend

from credit_service.errors import Refusal
from credit_service.rules.batch_state import BatchState
from credit_service.rules.commands import GiveCredits, Life, Reverse, RevokeGrant
from credit_service.rules.decide import decide
from credit_service.rules.due import settle
from credit_service.rules.model import Account

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
__all__ = ["capture", "hold", "purchase", "refund", "release", "spend"]


def at(time=None, priority=50):
    """The expiry and priority of credits that expire this long after noon."""
    return Life(None if time is None else NOON + time, None, priority)


def grant(amount, life, key, *, paid=False, **changes):
    fields = {"description": "", "reference": "", "metadata": {}, "validate_only": False}
    return GiveCredits(
        user_id=ALICE,
        caller="operator",
        idempotency_key=key,
        amount=amount,
        life=life,
        paid=paid,
        **(fields | changes),
    )


def revoke(seq, key="revoke", **changes):
    fields = {"description": "", "reference": "", "metadata": {}, "validate_only": False}
    return RevokeGrant(
        user_id=ALICE, caller="operator", idempotency_key=key, grant_seq=seq, **(fields | changes)
    )


def reverse(minor, revision=1, *, ref="pi_1", reversal="re_1", **changes):
    """A refund or dispute of this much of a payment of 1000."""
    fields = {"paid_minor": 1000, "currency": "eur", "reason": "", "validate_only": False}
    return Reverse(
        user_id=ALICE,
        caller="bridge",
        payment_ref=ref,
        reversal_ref=reversal,
        revision=revision,
        reversed_minor=minor,
        **(fields | changes),
    )


@dataclass(frozen=True)
class Left:
    """What is left: the pool, and of each grant, by its seq, the remaining and pinned credits."""

    pool: int
    grants: dict[int, tuple[int, int]]


class Story:
    """Alice's account through time; each command is a batch of its own."""

    def __init__(self, *steps, terms=TERMS, account=None):
        """A step is a command, or passing time (timedelta)."""
        self.terms = terms
        self.state = BatchState.of(NOON, account or Account(ALICE))
        for step in steps:
            self.do(step)

    @property
    def alice(self):
        return self.state.users[ALICE]

    def do(self, step):
        """The answer to a command, or nothing for passing time."""
        if isinstance(step, timedelta):
            self._load(step)
            return None
        if getattr(step, "idempotency_key", None) == "new":
            step = replace(step, idempotency_key=f"new {self.alice.account.seq}")
        answer = decide(self.state, step, self.terms)
        self.check()
        self._load(timedelta(0))
        return answer

    def refused(self, command):
        """The refusal of a command, which must leave everything as it was."""
        before = repr(self.state)
        try:
            decide(self.state, command, self.terms)
        except Refusal as refusal:
            assert repr(self.state) == before
            return refusal
        raise AssertionError(command)

    def left(self):
        account = self.alice.account
        grants = {seq: (g.remaining, g.pinned) for seq, g in sorted(self.alice.grants.items())}
        return Left(account.balance - account.in_grants, grants)

    def entries(self):
        """Every entry so far: its type and its two changes."""
        spends = sorted(self.alice.spends.items())
        return [(s.entry.type, s.entry.balance_change, s.entry.held_change) for _, s in spends]

    def check(self):
        """Checks the law: for every grant, the account, and the sums."""
        alice, account = self.alice, self.alice.account
        grants = alice.grants.values()
        for value in grants:
            assert 0 <= value.pinned <= value.remaining <= value.amount
            assert value.open or value.rest == 0
            assert value.counted <= value.lapsed
            rows = [c for part in alice.drawn.values() for c in part if c.grant_seq == value.seq]
            assert sum(c.remaining_change for c in rows) == value.remaining
            assert sum(c.pinned_change for c in rows) == value.pinned
        assert account.in_grants == sum(g.remaining for g in grants)
        assert account.pinned == sum(g.pinned for g in grants)
        assert account.open_grants == sum(g.open for g in grants)
        assert account.grants_made == len(grants)
        assert account.balance >= account.in_grants or account.in_grants == account.pinned
        assert 0 <= account.pinned <= account.held
        times = [g.expire_time for g in grants if g.open and g.expire_time]
        if times:
            assert account.next_lapse <= min(times)
        pins = [n for part in alice.pins.values() for n in part.values()]
        assert sum(pins) == account.pinned

    def _load(self, later):
        """The next batch, with everything loaded and everything due settled."""
        before = self.alice
        state = BatchState.of(self.state.now + later, before.account)
        for name in ("purchases", "reversals", "latest_reversals", "returned"):
            getattr(state, name).update(getattr(self.state, name))
        user = state.users[ALICE]
        for name in ("by_key", "kept_calls", "spends", "holds", "ended"):
            getattr(user, name).update(getattr(before, name))
        for name in ("grants", "pins", "drawn", "reversed"):
            getattr(user, name).update(getattr(before, name))
        self.state = state
        held = [h for h in user.holds.values() if h.state == "held"]
        ends = [h for h in held if h.expires_at <= user.now]
        expiring = [g for g in user.grants.values() if g.open and g.expire_time]
        lapses = [g for g in expiring if g.expire_time <= user.now]
        settle(
            user,
            sorted(ends, key=lambda h: (h.expires_at, h.seq)),
            [g.seq for g in sorted(lapses, key=lambda g: (g.expire_time, g.seq))],
            self.terms,
            next_end=min((h.expires_at for h in held if h not in ends), default=None),
            next_lapse=min((g.expire_time for g in expiring if g not in lapses), default=None),
        )
        self.check()
