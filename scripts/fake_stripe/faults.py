"""The faults that are made on purpose, drawn from a seed, and how often each struck."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

Item = TypeVar("Item")


@dataclass(slots=True)
class Shares:
    """How often each fault strikes, 0 to 1.

    Attributes:
        duplicate: an event is delivered again after it was answered.
        twin: one change makes two Event objects.
        reorder: the events of one change come in another order.
        delay: an event waits up to `delay_seconds` before its first try.
        lose: an event is listed and never delivered.
        unmade: a change makes no event at all, so that no list has it.
        cut_sending: the connection breaks in the middle of the request.
        cut_waiting: the whole request is sent, and the connection closed before the answer.
        cut_answer: the answer comes and is lost, so that the event is tried again.
        noise: a stranger posts beside the event: wrong secret, changed body, old timestamp.
    """

    duplicate: float = 0
    twin: float = 0
    reorder: float = 0
    delay: float = 0
    lose: float = 0
    unmade: float = 0
    cut_sending: float = 0
    cut_waiting: float = 0
    cut_answer: float = 0
    noise: float = 0
    delay_seconds: float = 1.0


# The faults of `--faults`: all those that Stripe's retries make up for.
USUAL = {
    "duplicate": 0.1,
    "twin": 0.05,
    "reorder": 0.3,
    "delay": 0.2,
    "cut_sending": 0.03,
    "cut_waiting": 0.05,
    "cut_answer": 0.05,
    "noise": 0.02,
}


@dataclass(slots=True)
class ApiFault:
    """How requests to the API fail.

    Attributes:
        kind: `status`, `hang` (waits `seconds`, then cuts), `cut` (half an answer),
            `lost_answer` (does what was asked, then answers with the status), or
            `late_answer` (does what was asked, then waits `seconds` before it answers).
        status: of the answer.
        code: of the error in the answer, if Stripe has one for the status.
        path: the beginning of the paths of such requests, below `/v1/`.
        method: GET or POST; empty for both.
        skip: how many such requests pass before the first fault.
        share: how often, 0 to 1.
        count: how many more times; None: without end.
        seconds: how long it hangs.
    """

    kind: str = "status"
    status: int = 500
    code: str = ""
    path: str = ""
    method: str = ""
    skip: int = 0
    share: float = 1.0
    count: int | None = None
    seconds: float = 30.0


class Faults:
    """Draws faults and counts those that struck."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.shares = Shares()
        self.api: list[ApiFault] = []
        self.struck: Counter[str] = Counter()

    def set(self, shares: dict[str, Any]) -> None:
        """Sets shares by name; those not named go back to none.

        Raises:
            ValueError: there is no such fault, or a share is not from 0 to 1.
        """
        known = {each.name for each in fields(Shares)}
        if unknown := set(shares) - known:
            raise ValueError(f"No such fault: {', '.join(sorted(unknown))}. There are {known}.")
        for name, share in shares.items():
            if name != "delay_seconds" and not 0 <= share <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, not {share}.")
        self.shares = Shares(**shares)

    def strikes(self, name: str) -> bool:
        """Draws whether the fault strikes now."""
        share = getattr(self.shares, name)
        if not share or self.random.random() >= share:
            return False
        self.struck[name] += 1
        return True

    def shuffled(self, items: Sequence[Item]) -> Sequence[Item]:
        """Returns the items, in another order if that fault strikes."""
        if len(items) < 2 or not self.strikes("reorder"):
            return items
        return self.random.sample(items, len(items))

    def of_request(self, method: str, path: str) -> ApiFault | None:
        """Draws the fault of a request, and uses one up if its number is limited."""
        for fault in self.api:
            fits = path.removeprefix("/v1/").startswith(fault.path)
            if not fits or fault.method not in {"", method} or fault.count == 0:
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            if self.random.random() < fault.share:
                if fault.count is not None:
                    fault.count -= 1
                self.struck[f"api_{fault.kind}"] += 1
                return fault
        return None

    def shown(self) -> dict[str, Any]:
        """Shows the faults that are set and those that struck, for the control routes."""
        return {"shares": asdict(self.shares), "struck": dict(self.struck)}
