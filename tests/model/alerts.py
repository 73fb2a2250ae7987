"""The plain model of alerts: looks at an account every second and says what it would announce."""

from dataclasses import dataclass

WORSE = ("fine", "low", "depleted")


@dataclass(frozen=True)
class Seen:
    """An account after a change: the second and number of the change, and what can be seen then."""

    second: int
    number: int
    available: int
    floor: int
    alert_below: int | None
    frozen: bool
    entries: int

    @property
    def level(self) -> str | None:
        if self.frozen or self.entries == 0:
            return None
        if self.available - self.floor < 1:
            return "depleted"
        if self.alert_below is None or self.available >= self.alert_below:
            return "fine"
        return "low"


def announced(history: list[Seen], cool_down: int, until: int) -> list[tuple[int, str, int]]:
    """The alerts of one account: second, level, and the number of the change behind it.

    Args:
        history: the states, in order; several may be of one second.
        cool_down: seconds.
        until: the last second that is looked at.
    """
    alerts: list[tuple[int, str, int]] = []
    left = 0
    said, now = "fine", None

    def say(second: int) -> None:
        nonlocal said, left
        said, left = now.level, cool_down
        alerts.append((second, said, now.number))

    waiting = list(history)
    for second in range(until + 1):
        left -= 1
        if left == 0 and now.level not in {None, said}:
            say(second)
        while waiting and waiting[0].second == second:
            now = waiting.pop(0)
            if now.level is None or now.level == said:
                continue
            if WORSE.index(now.level) > WORSE.index(said) or left <= 0:
                say(second)
    return alerts
