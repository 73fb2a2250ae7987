"""The plain model of alerts: it goes from moment to moment and says what it would announce."""

from dataclasses import dataclass

WORSE = ("fine", "low", "depleted")


@dataclass(frozen=True)
class Seen:
    """An account after a change: the change's time and number, and the values that readers see."""

    time: int
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


def announced(history: list[Seen], cool_down: int, until: float) -> list[tuple[int, str, int]]:
    """The alerts of one account: time, level, and the number of the change behind it.

    Args:
        history: the states, in order; several may have the same time.
        cool_down: in the unit of the times.
        until: the last moment that is looked at.
    """
    alerts: list[tuple[int, str, int]] = []
    coming = list(history)
    said, cools_until = "fine", float("inf")
    now = None
    while True:
        moment = min(cools_until, coming[0].time if coming else float("inf"))
        if moment > until or moment == float("inf"):
            return alerts
        if moment == cools_until:
            cools_until = float("inf")
            news = now.level not in {None, said}
        else:
            now = coming.pop(0)
            better = cools_until != float("inf") and now.level in WORSE[: WORSE.index(said)]
            news = now.level not in {None, said} and not better
        if news:
            said, cools_until = now.level, moment + cool_down
            alerts.append((moment, said, now.number))
