"""A second implementation of one account with grants: each credit with an expiry is an object.

Written from the words of the contract and not from the service's rules, so that the two can
disagree. A credit of a grant is always in one place: free, pinned by a hold, drawn by an entry,
lapsed or taken by a reversal. The pool is a number, because debt is no credit. Everything moves by
one credit at a time. Times are numbers of seconds since `SINCE`.
"""

from model.grant_credits import (
    DRAWN,
    FREE,
    LAPSED,
    NEVER,
    PLAIN_PRIORITY,
    POOL,
    TAKEN,
    Credit,
    Grant,
    Hold,
    Line,
    Purchase,
    Refused,
    burns,
    period_end,
    take_last,
)


class ModelGrants:
    """An account: a pool, grants, holds, purchases and lines."""

    def __init__(self, *, floor=0, grace=7 * 86400, open_holds=100):
        self.floor = floor
        self.grace = grace
        self.open_holds = open_holds
        self.now = 0.0
        self.pool = 0
        self.grants: dict[int, Grant] = {}
        self.holds: dict[int, Hold] = {}
        self.purchases: dict[str, Purchase] = {}
        self.lines: list[Line] = []
        self.allowance: tuple[int, str, int] | None = None
        self.allowance_until = float("-inf")

    # The account as it is shown.

    @property
    def in_grants(self):
        return sum(grant.remaining for grant in self.grants.values())

    @property
    def pinned(self):
        return sum(len(hold.pins) for hold in self._open())

    @property
    def balance(self):
        return self.pool + self.in_grants

    @property
    def held(self):
        return sum(len(hold.credits) for hold in self._open())

    def _open(self):
        return [hold for hold in self.holds.values() if hold.state == "held"]

    def _burning(self):
        return sorted(self.grants.values(), key=lambda grant: grant.burns)

    # Time.

    def look(self, now, *, posts_allowance=True):
        """Settles what is due at a time, in the order in which it fell due."""
        self.now = now
        while (due := self._next_due(now)) is not None:
            time, _, seq = due
            if seq in self.holds:
                self._end(self.holds[seq], "expired", time)
            else:
                self._lapse([g for g in self.grants.values() if g.expire <= time])
        if posts_allowance and self.allowance is not None and now >= self.allowance_until:
            amount, period, carry_over = self.allowance
            if amount:
                self.allowance_until = period_end(now, period)
                expire = self.allowance_until
                for _ in range(carry_over):
                    expire = period_end(expire, period)
                self._come("grant", amount, expire=expire)

    def _next_due(self, now):
        ends = [(hold.until, 0, hold.seq) for hold in self._open()]
        lapses = [(grant.expire, 1, grant.seq) for grant in self.grants.values() if grant.free]
        return min((due for due in [*ends, *lapses] if due[0] <= now), default=None)

    def _lapse(self, grants):
        gone = [credit for grant in grants for credit in grant.free]
        for credit in gone:
            credit.place = LAPSED
        if gone:
            self._line("lapse", len(gone), -len(gone))

    # How credits move.

    def _next_credit(self):
        """The next credit in burn order; if there is none, the pool, even below zero."""
        free = [grant.free[0] for grant in self._burning() if grant.free]
        before = [credit for credit in free if credit.grant.priority <= PLAIN_PRIORITY]
        if before:
            return before[0]
        if self.pool > self.held - self.pinned:
            return POOL
        return free[0] if free else POOL

    def _draw(self, amount, place=DRAWN):
        return [self._draw_one(place) for _ in range(amount)]

    def _draw_one(self, place):
        credit = self._next_credit()
        if credit is POOL:
            self.pool -= 1
        else:
            credit.place = place
        return credit

    def _settle(self, line):
        """Pays debt from the unpinned rests of grants."""
        for grant in self._burning():
            for credit in grant.free:
                if self.pool >= 0:
                    return
                credit.place = DRAWN
                line.drawn.append(credit)
                self.pool += 1

    def _put_back(self, credit):
        """Returns a credit to where it came from.

        A credit of a purchase that was reversed meanwhile restores what the reversal took in its
        place. A credit of a grant that has lapsed or was revoked opens the grant again, at least
        for the grace.
        """
        if credit is POOL:
            self.pool += 1
            return
        grant = credit.grant
        purchase = grant.purchase
        if purchase is not None and purchase.elsewhere:
            credit.place = TAKEN
            purchase.own.append(credit)
            self._put_back(take_last(purchase.elsewhere))
            return
        closed = grant.closed or not grant.remaining
        credit.place = FREE
        grant.closed = False
        if grant.expire <= self.now:
            grant.expire = self.now + self.grace
        elif grant.revoked and closed:
            later = self.now + self.grace
            grant.expire = later if grant.expire == NEVER else max(grant.expire, later)

    def _unpin(self, hold, line, time):
        """Frees the pins of a hold that has ended; those of a grant that is over lapse at once."""
        freed = hold.pins
        for credit in freed:
            credit.place = FREE
        self._settle(line)
        ended = [c for c in freed if c.grant.closed or c.grant.expire <= time]
        over = [credit for credit in ended if credit.place == FREE]
        for credit in over:
            credit.place = LAPSED
        if over:
            self._line("lapse", len(over), -len(over))

    def _line(self, kind, amount, balance_change, held_change=0, drawn=()):
        line = Line(len(self.lines) + 1, kind, amount, balance_change, held_change, list(drawn))
        self.lines.append(line)
        return line

    def _may_come_back(self, line):
        """Lists the credits that refunds of a line return: the pool's, then the last drawn."""
        of_the_pool = max(0, line.amount - len(line.drawn))
        back = [POOL] * of_the_pool + line.drawn[::-1]
        line.back = back[: line.amount][::-1]

    # The requests of callers. Every request looks first.

    def take(self, call, now, **fields):
        """Carries out a request at a time, and returns its line.

        Raises:
            Refused: it is refused, and only due changes have happened.
        """
        self.look(now)
        return getattr(self, f"_{call}")(**fields)

    def _come(
        self,
        kind,
        amount,
        *,
        expire=NEVER,
        priority=PLAIN_PRIORITY,
        paid=False,
        series=None,
        payment=None,
    ):
        line = self._line(kind, amount, amount)
        grant = None
        if expire == NEVER and priority == PLAIN_PRIORITY:
            self.pool += amount
        else:
            grant = Grant(line.seq, priority, expire, paid, series)
            grant.credits = [Credit(grant) for _ in range(amount)]
            self.grants[line.seq] = grant
        if payment is not None:
            purchase = Purchase(payment, line.seq, amount, grant)
            self.purchases[payment] = purchase
            if grant is not None:
                grant.purchase = purchase
        self._settle(line)
        return line

    def _purchase(self, *, amount, payment=None, rollover=None, expire=NEVER, **life):
        if payment in self.purchases:
            purchase = self.purchases[payment]
            if purchase.amount != amount:
                raise Refused("PAYMENT_REUSED")
            return self.lines[purchase.seq - 1]
        if expire <= self.now:
            if payment is None:
                raise Refused("INVALID_REQUEST")
            expire = self.now + self.grace
        if rollover is not None:
            life["series"] = rollover[0]
        line = self._come("purchase", amount, payment=payment, paid=True, expire=expire, **life)
        if rollover is not None:
            self._roll_over(line.seq, *rollover)
        return line

    def _roll_over(self, newest, series, cap):
        older = [g for g in self.grants.values() if g.series == series and g.seq != newest]
        older.sort(key=lambda grant: grant.burns[1:])
        free = [credit for grant in older for credit in grant.free]
        gone = free[: max(0, len(free) - cap)]
        for credit in gone:
            credit.place = LAPSED
        if gone:
            self._line("lapse", len(gone), -len(gone))

    def _grant(self, *, amount, expire=NEVER, **life):
        if expire <= self.now:
            raise Refused("INVALID_REQUEST")
        return self._come("grant", amount, expire=expire, **life)

    def _adjust(self, *, amount, allow_debt):
        if amount > 0:
            self.pool += amount
        else:
            if not allow_debt:
                self._must_have(-amount, self.held)
            self._draw(-amount, TAKEN)
        return self._line("adjustment", abs(amount), amount)

    def _must_have(self, amount, held):
        if self.balance - held - amount < self.floor:
            raise Refused("INSUFFICIENT_CREDITS")

    def _spend(self, *, amount):
        self._must_have(amount, self.held)
        drawn = [credit for credit in self._draw(amount) if credit is not POOL]
        line = self._line("spend", amount, -amount, drawn=drawn)
        self._settle(line)
        self._may_come_back(line)
        return line

    def _hold(self, *, amount, ttl):
        if len(self._open()) >= self.open_holds:
            raise Refused("TOO_MANY_HOLDS")
        self._must_have(amount, self.held)
        line = self._line("hold", amount, 0, amount)
        hold = Hold(line.seq, self.now, self.now + ttl)
        self.holds[line.seq] = hold
        for _ in range(amount):
            credit = self._next_credit()
            if credit is not POOL:
                credit.place = hold
            hold.credits.append(credit)
        return line

    def _named(self, hold):
        if hold not in self.holds:
            raise Refused("HOLD_NOT_FOUND")
        named = self.holds[hold]
        if named.captured:
            raise Refused("HOLD_NOT_ACTIVE")
        return named

    def _capture(self, *, hold, amount=None, overage=False):
        if amount == 0:
            return self._release(hold=hold)
        named = self._named(hold)
        if named.state == "released":
            raise Refused("HOLD_NOT_ACTIVE")
        size = self.lines[hold - 1].amount
        amount = size if amount is None else amount
        if amount > size and not overage:
            raise Refused("INVALID_REQUEST")
        if named.state == "expired":
            if self.balance - self.held - min(amount, size) < self.floor:
                raise Refused("HOLD_EXPIRED")
            self._must_have(amount, self.held)
            drawn = [credit for credit in self._draw(amount) if credit is not POOL]
            line = self._line("capture", amount, -amount, drawn=drawn)
        else:
            if amount > size:
                self._must_have(amount, self.held - size)
            first = sorted(named.credits, key=burns)[:amount]
            for credit in first:
                named.credits.remove(credit)
                if credit is POOL:
                    self.pool -= 1
                else:
                    credit.place = DRAWN
            named.state = "captured"
            drawn = [*first, *self._draw(amount - len(first))]
            drawn = [credit for credit in drawn if credit is not POOL]
            line = self._line("capture", amount, -amount, -size, drawn)
            self._unpin(named, line, self.now)
        named.captured = amount
        self._settle(line)
        self._may_come_back(line)
        return line

    def _release(self, *, hold):
        named = self._named(hold)
        if named.state == "held":
            self._end(named, "released", self.now)

    def _end(self, hold, state, time):
        hold.state = state
        size = len(hold.credits)
        kind = "expire" if state == "expired" else "release"
        self._unpin(hold, self._line(kind, size, 0, -size), time)

    def _extend(self, *, hold, ttl):
        named = self._named(hold)
        if named.state != "held":
            raise Refused("HOLD_EXPIRED" if named.state == "expired" else "HOLD_NOT_ACTIVE")
        latest = min(self.now + ttl, named.made + 72 * 3600)
        named.until = max(named.until, latest)

    def _refund(self, *, line=None, amount=None):
        if line is None:
            self.pool += amount
            return self._line("refund", amount, amount)
        if not 1 <= line <= len(self.lines):
            raise Refused("TRANSACTION_NOT_FOUND")
        spent = self.lines[line - 1]
        if spent.type not in {"spend", "capture"}:
            raise Refused("INVALID_REQUEST")
        amount = len(spent.back) if amount is None else amount
        if not spent.back or amount > len(spent.back):
            raise Refused("REFUND_EXCEEDS_SPEND")
        refund = self._line("refund", amount, amount)
        for _ in range(amount):
            self._put_back(spent.back.pop())
        self._settle(refund)
        return refund

    def _reverse(self, *, payment, reversal, revision, minor, paid):
        purchase = self.purchases.get(payment)
        if purchase is None:
            raise Refused("PAYMENT_NOT_FOUND")
        recorded = purchase.revisions.get((reversal, revision), minor)
        if recorded != minor:
            raise Refused("REVERSAL_REUSED")
        before = purchase.reversed_credits
        purchase.paid_minor = paid
        purchase.revisions[reversal, revision] = minor
        more = purchase.reversed_credits - before
        balance = self.balance
        line = self._line("reversal", 0, 0)
        if more > 0:
            self._take_back(purchase, more)
        else:
            self._give_back(purchase, -more)
        line.balance_change = self.balance - balance
        line.amount = abs(line.balance_change)
        if line.balance_change:
            self._settle(line)
        else:
            self.lines.remove(line)
        return line

    def _take_back(self, purchase, more):
        grant = purchase.grant
        if grant is not None:
            count = min(more, grant.lapsed - purchase.counted)
            purchase.counted += count
            more -= count
            for credit in [*grant.free, *grant.pinned][:more]:
                if isinstance(credit.place, Hold):
                    self._exchange(credit)
                credit.place = TAKEN
                purchase.own.append(credit)
                more -= 1
        else:
            # The credits of a purchase without an expiry are in the pool.
            own = min(more, max(0, self.pool - (self.held - self.pinned)))
            self.pool -= own
            more -= own
            purchase.elsewhere += [POOL] * own
        purchase.elsewhere += self._draw(more, TAKEN)

    def _exchange(self, pin):
        """Pins another credit for the hold of this one."""
        hold, other = pin.place, self._next_credit()
        hold.credits.remove(pin)
        hold.credits.append(other)
        if other is not POOL:
            other.place = hold

    def _give_back(self, purchase, less):
        for _ in range(less):
            if purchase.elsewhere:
                self._put_back(take_last(purchase.elsewhere))
            elif purchase.counted:
                purchase.counted -= 1
            else:
                self._put_back(purchase.own.pop())

    def _revoke(self, *, grant):
        if grant not in self.grants:
            raise Refused("GRANT_NOT_FOUND")
        named = self.grants[grant]
        if named.revoked or not named.remaining:
            return None
        named.revoked = named.closed = True
        gone = named.free
        for credit in gone:
            credit.place = LAPSED
        return self._line("revocation", len(gone), -len(gone)) if gone else None

    def _allowance(self, *, amount, period, carry_over):
        self.allowance = amount, period, carry_over
