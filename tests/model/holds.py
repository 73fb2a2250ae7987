"""A second, very simple implementation of one account with holds: a list of lines, and its sums.

Written from the words of the contract and not from the service's rules, so that the two can
disagree. The held credits, the state of a hold and the rest of a capture are added up for each
request. Times are numbers of seconds.
"""

from dataclasses import dataclass

LIFE_SECONDS = 72 * 3600
DAY_SECONDS = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class Request:
    """A call as its caller makes it; `hold` and `transaction` are places in the list of lines."""

    call: str
    key: str = ""
    amount: int | None = None
    operation: str | None = None
    quantity: int | None = None
    hold: int | None = None
    transaction: int | None = None
    overage: bool = False
    ttl: float = 900
    frozen: bool | None = None
    floor: int | None = None
    per_day: int | None = None
    validate_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """An entry; `hold` is the hold that it made, ended or captured late."""

    seq: int
    type: str
    amount: int
    balance_change: int
    held_change: int
    key: str | None
    hold: int | None
    transaction: int | None = None


@dataclass(frozen=True)
class Done:
    """The line that answers a request (None if it makes none), and whether it was there before.

    `hold` is the hold concerned: its place, state and captured credits.
    """

    line: Line | None
    replayed: bool
    hold: tuple[int, str, int] | None


@dataclass(frozen=True)
class Refused:
    """A refusal by its reason and facts."""

    reason: str
    facts: dict[str, object]


class _NoError(Exception):
    """Ends a decision by a refusal."""


def _refuse(reason, **facts):
    raise _NoError(Refused(reason, facts))


class ModelHolds:
    """The lines of one account, each with the request that made it.

    `kept` has the requests that were answered with another request's line.
    """

    def __init__(self, unit_costs, *, floor=0, cap=100):
        self.unit_costs = unit_costs
        self.floor = floor
        self.cap = cap
        self.frozen = False
        self.per_day: int | None = None
        self.counted: list[tuple[float, int]] = []
        self.lines: list[tuple[Request | None, Line]] = []
        self.kept: list[tuple[Request, Line]] = []
        self.ends: dict[int, float] = {}
        self.made: dict[int, float] = {}

    @property
    def balance(self):
        return sum(line.balance_change for _, line in self.lines)

    @property
    def held(self):
        return sum(line.held_change for _, line in self.lines)

    @property
    def open(self):
        return [seq for seq in self.ends if self.state(seq) == "held"]

    def state(self, hold):
        """The state of a hold according to the lines."""
        for _, line in self.lines:
            if line.hold == hold and line.held_change < 0:
                ended = {"capture": "captured", "release": "released", "expire": "expired"}
                return ended[line.type]
        return "held"

    def captured(self, hold):
        return sum(
            line.amount for _, line in self.lines if (line.type, line.hold) == ("capture", hold)
        )

    def pass_time(self, now):
        """Expires due holds, the earliest first."""
        for end, hold in sorted((self.ends[hold], hold) for hold in self.open):
            if end <= now:
                size = self._size(hold)
                self._write(None, self._line("expire", size, 0, -size, hold=hold))

    def take(self, request, now):
        """Answers a request at a time, and writes its line."""
        self.pass_time(now)
        for first, line in [*self.lines, *self.kept]:
            if first is not None and request.key and first.key == request.key:
                return self._repeated(request, first, line)
        decide = {
            "PurchaseCredits": self._purchase,
            "SpendCredits": self._spend,
            "RefundCredits": self._refund,
            "HoldCredits": self._hold,
            "CaptureHold": self._capture,
            "ReleaseHold": self._release,
            "ExtendHold": self._extend,
            "SetAccountPolicy": self._policy,
        }[request.call]
        try:
            answer = decide(request, now)
        except _NoError as no:
            return no.args[0]
        if not isinstance(answer, Line):
            if answer.replayed and not request.validate_only:
                self.kept.append((request, answer.line))
            return answer
        shown = answer.hold and self._shown(answer.hold)
        if request.validate_only:
            return Done(answer, replayed=False, hold=None if answer.type == "hold" else shown)
        self._write(request, answer)
        self.counted.append((now, self._counts(answer)))
        if answer.type == "hold":
            self.made[answer.seq], self.ends[answer.seq] = now, now + request.ttl
        return Done(answer, replayed=False, hold=answer.hold and self._shown(answer.hold))

    def _counts(self, line):
        """The credits of a line that count against the limit: of a capture only the overage."""
        if line.type == "capture":
            return max(0, line.amount - self._size(line.hold))
        return line.amount if line.type in {"spend", "hold"} else 0

    def _must_be_within_limit(self, cost, now):
        if self.per_day is None:
            return
        if cost > self.per_day:
            _refuse("ABOVE_SPEND_LIMIT", required=cost, window="day", limit=self.per_day)
        today = now // DAY_SECONDS
        spent = sum(credits_ for time, credits_ in self.counted if time // DAY_SECONDS == today)
        if spent + cost > self.per_day:
            _refuse("SPEND_LIMIT_EXCEEDED", window="day", limit=self.per_day, spent=spent)

    def _write(self, request, line):
        self.lines.append((request, line))

    def _line(self, kind, amount, balance_change, held_change, *, key=None, hold=None, of=None):
        seq = len(self.lines) + 1
        return Line(
            seq=seq,
            type=kind,
            amount=amount,
            balance_change=balance_change,
            held_change=held_change,
            key=key,
            hold=seq if kind == "hold" else hold,
            transaction=of,
        )

    def _size(self, hold):
        return self.lines[hold - 1][1].amount

    def _shown(self, hold):
        return hold, self.state(hold), self.captured(hold)

    def _repeated(self, request, first, line):
        for field in ("call", "amount", "operation", "quantity", "transaction", "hold"):
            if getattr(request, field) != getattr(first, field):
                name = {"transaction": "transaction_id", "hold": "hold_id"}.get(field, field)
                return Refused("IDEMPOTENCY_KEY_REUSED", {"field": name, "seq": line.seq})
        return Done(line, replayed=True, hold=line.hold and self._shown(line.hold))

    def _must_have(self, cost, held):
        available = self.balance - held
        if available - cost < self.floor:
            _refuse(
                "INSUFFICIENT_CREDITS",
                required=cost,
                available=available,
                held=held,
                shortfall=self.floor - (available - cost),
            )

    def _must_not_be_frozen(self):
        if self.frozen:
            _refuse("ACCOUNT_FROZEN")

    def _cost(self, request):
        if request.operation is None:
            return request.amount
        if request.operation not in self.unit_costs:
            _refuse("INVALID_REQUEST", field="charge.operation")
        return self.unit_costs[request.operation] * request.quantity

    def _purchase(self, request, _now):
        return self._line("purchase", request.amount, request.amount, 0, key=request.key)

    def _spend(self, request, now):
        self._must_not_be_frozen()
        cost = self._cost(request)
        self._must_be_within_limit(cost, now)
        self._must_have(cost, self.held)
        return self._line("spend", cost, -cost, 0, key=request.key)

    def _refund(self, request, _now):
        if not 1 <= request.transaction <= len(self.lines):
            _refuse("TRANSACTION_NOT_FOUND")
        spent = self.lines[request.transaction - 1][1]
        if spent.type not in {"spend", "capture"}:
            _refuse("INVALID_REQUEST", field="transaction_id")
        left = spent.amount - sum(
            line.amount for _, line in self.lines if line.transaction == spent.seq
        )
        amount = left if request.amount is None else request.amount
        if left == 0 or amount > left:
            _refuse("REFUND_EXCEEDS_SPEND", refundable=left)
        return self._line("refund", amount, amount, 0, key=request.key, of=spent.seq)

    def _hold(self, request, now):
        self._must_not_be_frozen()
        cost = self._cost(request)
        if len(self.open) >= self.cap:
            _refuse("TOO_MANY_HOLDS", limit=self.cap)
        self._must_be_within_limit(cost, now)
        self._must_have(cost, self.held)
        return self._line("hold", cost, 0, cost, key=request.key)

    def _unpaid(self, request):
        """The state of the hold that a request names, if nothing was captured of it."""
        if request.hold not in self.ends:
            _refuse("HOLD_NOT_FOUND")
        if self.captured(request.hold):
            _refuse("HOLD_NOT_ACTIVE", state="CAPTURED")
        return self.state(request.hold)

    def _capture(self, request, now):
        if request.amount == 0:
            return self._release(request, now)
        state = self._unpaid(request)
        if state == "released":
            _refuse("HOLD_NOT_ACTIVE", state="RELEASED")
        size = self._size(request.hold)
        amount, named = request.amount or size, "amount"
        if request.quantity is not None:
            named = "quantity"
            operation = self.lines[request.hold - 1][0].operation
            if operation is None:
                _refuse("INVALID_REQUEST", field=named)
            amount = request.quantity * self.unit_costs[operation]
        if amount > size and not request.overage:
            _refuse("INVALID_REQUEST", field=named)
        late = state == "expired"
        if late or amount > size:
            self._must_not_be_frozen()
            if amount > size:
                self._must_be_within_limit(amount - size, now)
            if late and self.balance - self.held - min(amount, size) < self.floor:
                _refuse("HOLD_EXPIRED")
            self._must_have(amount, self.held if late else self.held - size)
        held_change = 0 if late else -size
        return self._line(
            "capture", amount, -amount, held_change, key=request.key, hold=request.hold
        )

    def _release(self, request, _now):
        if self._unpaid(request) != "held":
            about = [line for _, line in self.lines if line.hold == request.hold]
            (ended,) = [line for line in about if line.held_change < 0]
            return Done(ended, replayed=True, hold=self._shown(request.hold))
        size = self._size(request.hold)
        return self._line("release", size, 0, -size, key=request.key, hold=request.hold)

    def _extend(self, request, now):
        state = self._unpaid(request)
        if state == "expired":
            _refuse("HOLD_EXPIRED")
        if state == "released":
            _refuse("HOLD_NOT_ACTIVE", state="RELEASED")
        latest = min(now + request.ttl, self.made[request.hold] + LIFE_SECONDS)
        self.ends[request.hold] = max(self.ends[request.hold], latest)
        return Done(None, replayed=False, hold=self._shown(request.hold))

    def _policy(self, request, _now):
        self.frozen = self.frozen if request.frozen is None else request.frozen
        self.floor = self.floor if request.floor is None else request.floor
        if request.per_day is not None:
            self.per_day = request.per_day or None
        return Done(None, replayed=False, hold=None)
