"""The rules of alerts: when an account is low on credits, and what alerts announce.

An account is at one of three levels, and an alert announces its new level. So of several alerts the
last one holds. A worse level is announced at once. A better one is announced when the cool-down
since the last alert has ended, because an account that crosses its threshold back and forth would
otherwise cause an alert each time. The newest state is compared then, so the last change is never
lost, and a change that was undone in between causes no alert.

All times are those of the changes themselves. So the alerts follow from the history of an account
alone, and not from the time at which it is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime, timedelta

Level = Literal["fine", "low", "depleted"]
AlertType = Literal["balance.recovered", "balance.low", "balance.depleted"]

_TYPES: dict[Level, AlertType] = {
    "fine": "balance.recovered",
    "low": "balance.low",
    "depleted": "balance.depleted",
}
_RANKS = {level: rank for rank, level in enumerate(_TYPES)}


class Change(NamedTuple):
    """A change of an account: its entry, or a change of its policy.

    Attributes:
        tx: the number of the transaction in the feed.
        is_policy: whether it is a change of the policy.
        number: the seq of the entry, or the number of the policy change.
        time: when, by the database's clock.
    """

    tx: int
    is_policy: bool
    number: int
    time: datetime


class State(NamedTuple):
    """The figures of an account after a change, in credits.

    Attributes:
        change: the change that led to this state.
        has_entries: whether the account ever had an entry.
        floor: the credits that a spend or hold must leave available.
        alert_below: the threshold that holds, its own or the configured one; None: none.
    """

    change: Change
    balance: int
    held: int
    floor: int
    alert_below: int | None
    frozen: bool = False
    has_entries: bool = True

    @property
    def available(self) -> int:
        """The available credits, which are compared with the floor and the threshold."""
        return self.balance - self.held


class Announced(NamedTuple):
    """The last announcement about an account.

    Attributes:
        level: the level announced. A fine account needs no record, because only a worse level can
            follow.
        cools_until: when the cool-down since the last alert ends; None where there was none.
        waiting: the newest state, where it is better than the level; compared after the cool-down.
    """

    level: Level = "fine"
    cools_until: datetime | None = None
    waiting: State | None = None


NOTHING_ANNOUNCED = Announced()


class BalanceAlert(NamedTuple):
    """An alert about a balance.

    Attributes:
        state: the state of the account, and the change that caused it.
        time: the time of the change, or the end of the cool-down.
    """

    type: AlertType
    state: State
    time: datetime


def level_of(state: State) -> Level | None:
    """The level of an account; None for an account of which nothing is announced.

    Nothing is announced of a frozen account, because credits would not help it, and of one that
    never had an entry, because nothing ran out. An account is depleted if a spend or hold of one
    credit would be refused, whatever its threshold, and low if fewer credits are available than its
    threshold says.
    """
    return None if state.frozen or not state.has_entries else _by_figures(state)


def _by_figures(state: State) -> Level:
    if state.available <= state.floor:
        return "depleted"
    if state.alert_below is not None and state.available < state.alert_below:
        return "low"
    return "fine"


def compare(
    last: Announced, state: State, cool_down: timedelta
) -> tuple[Announced, tuple[BalanceAlert, ...]]:
    """Compares a new state of an account with the last announcement.

    Args:
        last: the last announcement about the account.
        state: after its next change.
        cool_down: how long after an alert a better level waits.

    Returns:
        The last announcement now, and the alerts, in order: that of a cool-down that had ended
        before the change, and that of the change.
    """
    earlier: tuple[BalanceAlert, ...] = ()
    if last.cools_until is not None and last.cools_until <= state.change.time:
        last, earlier = end_cool_down(last, cool_down)
    level = level_of(state)
    if level is None or level == last.level:
        return last._replace(waiting=None), earlier
    time = state.change.time
    cools = last.cools_until is not None and time < last.cools_until
    if cools and _RANKS[level] < _RANKS[last.level]:
        return last._replace(waiting=state), earlier
    last, alerts = _announce(level, state, time, cool_down)
    return last, earlier + alerts


def end_cool_down(
    last: Announced, cool_down: timedelta
) -> tuple[Announced, tuple[BalanceAlert, ...]]:
    """Compares the state that has waited for the end of the cool-down, if one has.

    Args:
        last: the last announcement about an account whose cool-down has ended.
        cool_down: how long the next one lasts.
    """
    if last.waiting is None or last.cools_until is None:
        return last, ()
    return _announce(_by_figures(last.waiting), last.waiting, last.cools_until, cool_down)


def _announce(
    level: Level, state: State, time: datetime, cool_down: timedelta
) -> tuple[Announced, tuple[BalanceAlert, ...]]:
    return Announced(level, time + cool_down), (BalanceAlert(_TYPES[level], state, time),)
