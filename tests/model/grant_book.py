"""A book in memory for the rules of grants: the rows written, and those that a batch loads of them.

It checks the law after every batch, independently of any model.
"""

from collections import defaultdict
from datetime import timedelta

from model.drawn_holds import ALICE, PRICES
from model.grant_credits import NEVER, SINCE

from credit_service.rules import due
from credit_service.rules.batch_state import BatchState
from credit_service.rules.commands import (
    Adjust,
    Capture,
    Charge,
    Extend,
    GiveCredits,
    Life,
    MakeHold,
    Purchase,
    Refund,
    Release,
    Reverse,
    RevokeGrant,
    Rollover,
    SetPolicy,
    Spend,
)
from credit_service.rules.grant_values import Allowance
from credit_service.rules.model import Account, Payment, Spent
from credit_service.rules.terms import Terms


def terms(floor, grace):
    return Terms(PRICES, floor, refund_grace=timedelta(seconds=grace))


def time(seconds):
    return SINCE + timedelta(seconds=seconds)


def as_command(call, fields, key):
    """A request of the model as a command, with the rules' names for its references."""
    who = {"user_id": ALICE, "caller": "test"}
    common = who | {
        "idempotency_key": key,
        "description": "",
        "reference": "",
        "metadata": {},
        "validate_only": False,
    }
    amount = {"amount": fields.get("amount")}
    charge = {"charge": Charge(fields.get("amount"))}
    ref = fields.get("payment")
    ttl = {"ttl": timedelta(seconds=fields.get("ttl", 0))}
    hold = {"hold_seq": fields.get("hold")}
    bought = amount | {
        "payment": None if ref is None else Payment(ref, 999, "eur"),
        "rollover": Rollover(*fields["rollover"]) if "rollover" in fields else None,
    }
    part = amount | {"quantity": None, "allow_overage": fields.get("overage", False)}
    reversal = {
        "payment_ref": ref,
        "reversal_ref": f"{ref} {fields.get('reversal')}",
        "revision": fields.get("revision"),
        "reversed_minor": fields.get("minor"),
        "paid_minor": fields.get("paid"),
        "currency": "eur",
        "reason": "",
        "validate_only": False,
    }
    life = {"life": _life(fields)}
    kind, rest = {
        "purchase": (Purchase, common | bought | life),
        "grant": (GiveCredits, common | amount | life | {"paid": fields.get("paid", False)}),
        "spend": (Spend, common | charge),
        "adjust": (Adjust, common | amount | {"allow_debt": fields.get("allow_debt")}),
        "hold": (MakeHold, common | charge | ttl),
        "capture": (Capture, common | hold | part),
        "release": (Release, common | hold),
        "extend": (Extend, who | hold | ttl),
        "refund": (Refund, common | amount | {"spend_seq": fields.get("line")}),
        "revoke": (RevokeGrant, common | {"grant_seq": fields.get("grant")}),
        "reverse": (Reverse, who | reversal),
        "allowance": (SetPolicy, who | {"allowance": _allowance(fields)}),
    }[call]
    if kind is SetPolicy:
        rest |= {"frozen": None, "min_balance": None, "limits": None}
    return kind(**rest)


def _allowance(fields):
    period = fields.get("period", "day")
    return Allowance(fields.get("amount") or 0, period, fields.get("carry_over", 0))


def _life(fields):
    expire = fields.get("expire", NEVER)
    expire_time = None if expire == NEVER else time(expire)
    return Life(expire_time=expire_time, priority=fields.get("priority", 50))


class GrantBook:
    """Everything that was written about Alice.

    `sparse`: a batch gets only the grants that its commands need, as a ledger loads them.
    `limit`: the maximum of expiries and lapses in a batch.
    """

    def __init__(self, terms, *, sparse, limit=500):
        self.terms = terms
        self.sparse = sparse
        self.limit = limit
        self.account = Account(ALICE)
        self.entries = {}
        self.refunded = {}
        self.holds = {}
        self.grants = {}
        self.changes = []
        self.bought = {}
        self.reversals = {}
        self.latest = {}
        self.returned = {}

    @property
    def pins(self):
        """The credits that each hold pins of each grant: the sums of its changes."""
        sums = defaultdict(lambda: defaultdict(int))
        for change in self.changes:
            if change.hold_seq is not None:
                sums[change.hold_seq][change.grant_seq] += change.pinned_change
        return {
            hold: {grant: credits_ for grant, credits_ in pins.items() if credits_}
            for hold, pins in sums.items()
        }

    def state(self, now, commands, *, looked_at=True):
        """The state of a batch at a time. Earlier batches have settled what is due."""
        while (state := self._state(now, commands, looked_at)).users[ALICE].more_due:
            self.write(state)
        return state

    def _state(self, now, commands, looked_at):
        state = BatchState.of(now, self.account)
        alice = state.users[ALICE]
        alice.spends.update(
            (seq, Spent(entry, self.refunded.get(seq, 0))) for seq, entry in self.entries.items()
        )
        alice.holds.update(self.holds)
        alice.ended.update(
            (seq, self.entries[hold.settled_seq])
            for seq, hold in self.holds.items()
            if hold.settled_seq is not None
        )
        opened = [hold for hold in self.holds.values() if hold.state == "held"]
        lapsing = [g for g in self.grants.values() if g.open and g.expire_time is not None]
        due_now = sorted(
            [(hold.expires_at, 0, hold.seq) for hold in opened if hold.expires_at <= now]
            + [(grant.expire_time, 1, grant.seq) for grant in lapsing if grant.expire_time <= now]
        )
        ends = [self.holds[seq] for _, kind, seq in due_now[: self.limit] if kind == 0]
        lapses = [self.grants[seq] for _, kind, seq in due_now[: self.limit] if kind == 1]
        alice.more_due = len(due_now) > self.limit
        pins = self.pins
        alice.pins.update({seq: dict(pins[seq]) for seq in pins if self.holds[seq].state == "held"})
        for change in self.changes:
            alice.drawn.setdefault(change.seq, []).append(change)
            if change.reversed_seq is not None:
                alice.reversed.setdefault(change.reversed_seq, []).append(change)
        alice.grants.update(self._loaded(commands, ends, lapses))
        state.purchases.update(self.bought)
        state.reversals.update(self.reversals)
        state.latest_reversals.update(self.latest)
        state.returned.update(self.returned)
        later_ends = [hold.expires_at for hold in opened if hold.expires_at > now]
        later_lapses = [grant.expire_time for grant in lapsing if grant.expire_time > now]
        due.settle(
            alice,
            ends,
            [grant.seq for grant in lapses],
            self.terms,
            next_end=min(later_ends, default=None),
            next_lapse=min(later_lapses, default=None),
            more=alice.more_due,
            looked_at=looked_at,
        )
        return state

    def _loaded(self, commands, ends, lapses):
        if not self.sparse:
            return self.grants
        named = {grant.seq for grant in lapses}
        ended = {hold.seq for hold in ends}
        ended |= {c.hold_seq for c in commands if isinstance(c, Capture | Release)}
        drawn, everything = 0, False
        for command in commands:
            match command:
                case Spend() | MakeHold():
                    drawn += command.charge.amount
                case Capture():
                    # Overage, a late capture, and the debt that the pool's share may cause.
                    drawn += max(command.amount or 0, self.entries[command.hold_seq].amount)
                case Adjust():
                    drawn += max(0, -command.amount)
                case Refund():
                    named |= {c.grant_seq for c in self.changes if c.seq == command.spend_seq}
                case RevokeGrant():
                    named.add(command.grant_seq)
                case Purchase():
                    series = command.rollover and command.rollover.series
                    named |= {
                        g.seq for g in self.grants.values() if g.series and g.series == series
                    }
                case Reverse():
                    everything = True
        for hold in ended:
            named |= self.pins.get(hold, {}).keys()
        if everything:
            return self.grants
        seqs = set(named)
        while True:
            more = {
                change.grant_seq
                for change in self.changes
                if change.reversed_seq in seqs and self.grants[change.reversed_seq].reversed
            } - seqs
            if not more:
                break
            seqs |= more
        burning = sorted(
            (g for g in self.grants.values() if g.open and g not in lapses), key=_burns
        )
        for grant in burning:
            if drawn <= 0:
                break
            seqs.add(grant.seq)
            drawn -= grant.rest
        return {seq: self.grants[seq] for seq in seqs}

    def write(self, state):
        """Writes a batch, and adds everything up."""
        alice = state.users[ALICE]
        for entry in alice.posted:
            assert entry.seq == len(self.entries) + 1
            self.entries[entry.seq] = entry
        if alice.is_changed:
            self.account = alice.account
        self.refunded |= {seq: alice.spends[seq].refunded for seq in alice.refunded}
        self.holds |= {seq: alice.holds[seq] for seq in alice.changed_holds}
        self.grants |= {seq: alice.grants[seq] for seq in sorted(alice.changed_grants)}
        self.changes += alice.grant_changes
        self.bought |= state.bought
        for reversal in state.new_reversals:
            self.reversals[reversal.reversal_ref, reversal.revision] = reversal
        self.latest |= state.latest_reversals
        self.returned |= state.returned
        self.adds_up()

    def adds_up(self):
        """The law, and every sum that the book keeps."""
        account, entries, grants = self.account, self.entries.values(), self.grants.values()
        pool = account.balance - account.in_grants
        assert account.balance == sum(entry.balance_change for entry in entries)
        assert account.held == sum(entry.held_change for entry in entries)
        assert account.in_grants == sum(grant.remaining for grant in grants)
        assert account.pinned == sum(grant.pinned for grant in grants)
        assert 0 <= account.pinned <= account.held
        assert pool >= 0 or account.in_grants == account.pinned
        assert account.open_grants == sum(grant.open for grant in grants)
        assert account.grants_made == len(self.grants)
        lapses = [g.expire_time for g in grants if g.open and g.expire_time is not None]
        assert not lapses or account.next_lapse <= min(lapses)
        pins = self.pins
        for seq, hold in self.holds.items():
            pinned = sum(pins.get(seq, {}).values())
            assert 0 <= pinned <= (hold.amount if hold.state == "held" else 0)
        for grant in grants:
            changes = [change for change in self.changes if change.grant_seq == grant.seq]
            assert 0 <= grant.pinned <= grant.remaining <= grant.amount
            assert grant.open or grant.remaining == grant.pinned
            assert not grant.open or grant.remaining
            assert 0 <= grant.counted <= grant.lapsed <= grant.amount
            remaining = pinned = 0
            for change in changes:
                remaining += change.remaining_change
                pinned += change.pinned_change
                assert (change.remaining_after, change.pinned_after) == (remaining, pinned)
                assert change.seq in self.entries
            assert (grant.remaining, grant.pinned) == (remaining, pinned)
            assert grant.expire_time == changes[-1].expire_after
            assert grant.pinned == sum(held.get(grant.seq, 0) for held in pins.values())
        for entry in entries:
            moved = sum(c.remaining_change for c in self.changes if c.seq == entry.seq)
            if entry.type in {"lapse", "revocation"}:
                assert moved == entry.balance_change < 0
        for payment, bought in self.bought.items():
            about = [r for r in self.reversals.values() if r.payment_ref == payment]
            moved = -sum(r.entry.balance_change for r in about if r.entry is not None)
            counted = sum(reversal.counted for reversal in about)
            if about:
                returned = self.returned[payment]
                total = min(returned.reversed_minor, returned.paid_minor)
                assert moved + counted == bought.amount * total // returned.paid_minor
            grant = self.grants.get(bought.seq)
            if grant is not None:
                assert counted == grant.counted
                assert moved + counted == grant.reversed


def _burns(grant):
    return (
        grant.priority,
        grant.expire_time is None,
        grant.expire_time or SINCE,
        grant.paid,
        grant.seq,
    )
