"""A plain model of the top-ups of one account: it keeps what happened and recounts it each time.

From the entries that the ledger posted it derives the requests that there must be.
"""

from dataclasses import dataclass, field
from datetime import UTC

from credit_service.errors import HoldExpired, InsufficientCredits, Refusal
from credit_service.rules.commands import (
    Capture,
    FailTopUp,
    MakeHold,
    NoteTopUp,
    Purchase,
    Reverse,
    SetPolicy,
    Spend,
    SpendTogether,
)

ASKS = (Spend, MakeHold, Capture)


@dataclass
class Request:
    """A request as the model sees it; `bought` is the entry of its purchase."""

    pack: str
    state: str = "open"
    payment: str | None = None
    tries: int = 0
    bought: object = None


@dataclass
class TopUpModel:
    """One account.

    Attributes:
        facts: the events that decide whether top-up is on: failed, paid (a top-up), bought
            (another purchase), set (the policy), reversed (a top-up).
        purchases: the purchase entry of each payment.
        returned: how much money of each payment went back: the latest of its one reversal, with
            its revision.
    """

    available: int = 0
    policy: object = None
    frozen: bool = False
    facts: list = field(default_factory=list)
    requests: list = field(default_factory=list)
    purchases: dict = field(default_factory=dict)
    returned: dict = field(default_factory=dict)

    def failures(self):
        count = 0
        for fact in self.facts:
            count = count + 1 if fact == "failed" else 0 if fact != "reversed" else count
        return count

    def off(self):
        why, count = None, 0
        for fact in self.facts:
            count = count + 1 if fact == "failed" else 0 if fact != "reversed" else count
            if fact in {"bought", "set"} or (fact == "paid" and why == "failures"):
                why = None
            elif fact == "reversed":
                why = "reversal"
            elif why is None and count == 3:
                why = "failures"
        return why

    def charges(self, time):
        month = time.astimezone(UTC).strftime("%Y-%m")
        return sum(
            request.bought.timestamp.astimezone(UTC).strftime("%Y-%m") == month
            for request in self.requests
            if request.bought is not None
        )

    def open(self):
        return [request for request in self.requests if request.state == "open"]

    def wants(self, time):
        return (
            self.policy is not None
            and self.available < self.policy.below
            and not self.frozen
            and self.off() is None
            and self.charges(time) < self.policy.per_month
        )

    def ask(self, time):
        if self.wants(time) and not self.open():
            self.requests.append(Request(self.policy.pack))

    def follow(self, command, answer, time):
        """Follows a command that the ledger decided at a time, with its outcome or refusal."""
        refused = isinstance(answer, Refusal)
        new = not refused and not answer.replayed and not getattr(command, "validate_only", False)
        if new and answer.entry is not None:
            self.available = answer.entry.balance_after - answer.entry.held_after
        match command:
            case SpendTogether() if all(not isinstance(part, Refusal) for part in answer.parts):
                for spend, part in zip(command.spends, answer.parts, strict=True):
                    self.follow(spend, part, time)
            case Spend() | MakeHold() | Capture() if not command.validate_only:
                short = isinstance(answer, (InsufficientCredits, HoldExpired))
                if short or (new and answer.entry.type != "release"):
                    self.ask(time)
            case Purchase() if new:
                ref = command.payment.ref
                self.purchases[ref] = answer.entry
                mine = [request for request in self.requests if request.payment == ref]
                self.facts.append("paid" if mine else "bought")
                for request in mine:
                    request.state, request.bought = "succeeded", answer.entry
            case Reverse() if new:
                self._reverse(command)
            case SetPolicy():
                if command.frozen is not None:
                    self.frozen = command.frozen
                if "top_up" in command.reset:
                    self.policy = None
                if command.top_up is not None:
                    self.policy = command.top_up
                    self.facts.append("set")
            case NoteTopUp() if new:
                self._note(command)
            case FailTopUp() if new:
                request = self.requests[command.top_up.number - 1]
                if command.failure == "not_needed":
                    request.state = "not_needed"
                else:
                    request.tries += 1
                    self.facts.append("failed")
                    if command.failure == "given_up":
                        request.state = "failed"

    def _note(self, command):
        request = self.requests[command.top_up.number - 1]
        request.payment = ref = command.payment_ref
        if ref in self.purchases:
            request.state, request.bought = "succeeded", self.purchases[ref]
            self.facts.append("paid")
            if self.returned.get(ref, (0, 0))[1] > 0:
                self.facts.append("reversed")

    def _reverse(self, command):
        before = self.returned.get(command.payment_ref, (0, 0))
        now = max(before, (command.revision, command.reversed_minor))
        self.returned[command.payment_ref] = now
        bought = any(
            request.payment == command.payment_ref and request.bought is not None
            for request in self.requests
        )
        if now[1] > before[1] and bought:
            self.facts.append("reversed")
