"""The calls that wait to be sent together: which of them may go now, and in which order."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

# The maximum number of items that the service takes in one request.
ITEMS_MAX = 500
BYTES_MAX = 512 * 1024

# The bytes of an item beside the request of its call: tags, lengths, index and time.
_ITEM_BYTES = 24


@dataclass(slots=True, eq=False)
class Item:
    """A call that waits to be sent, or for its answer.

    Attributes:
        kind: the name of the call in CallMany: spend, hold or capture.
        request: that of the single call.
        user: whose call it is.
        deadline: by the clock of the event loop.
        answer: the response, or what the call failed with; None: the caller is to make the single
            call.
        group: the items that were sent together with it, while it has no answer.
    """

    kind: str
    request: Any
    user: str
    deadline: float
    answer: asyncio.Future[Any]
    group: Group | None = None


@dataclass(slots=True, eq=False)
class Group:
    """Items that go to the service in one request.

    Attributes:
        items: those without an answer, by their index in the request.
        size: how many items it had when it was sent.
        callers: how many of those without an answer have a caller who still waits.
        task: sends the request; None: there is one item, whose caller makes the single call.
        slow: frees the place of the group if no answer comes for long.
    """

    items: dict[int, Item] = field(default_factory=dict)
    size: int = 0
    callers: int = 0
    task: asyncio.Task[Any] | None = None
    slow: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class _Turn:
    """The calls of a user that are sent and have no answer, all in one group, and those after them.

    Attributes:
        group: the group.
        unanswered: how many calls of the user it has.
        keys: of the calls of the user that were put into it.
        later: the calls that wait until it has answered all calls of the user.
    """

    group: Group
    unanswered: int = 0
    keys: set[str] = field(default_factory=set)
    later: OrderedDict[Item, None] = field(default_factory=OrderedDict)


class CallQueue:
    """Keeps the calls of each user in the order in which they were made.

    The service keeps this order within a request, but two requests may overtake each other: the
    smaller one arrives first, or each goes to another replica. So the calls of a user wait while
    another group has an unanswered call of that user. Of two calls with one key, the second waits
    as well.
    """

    def __init__(self) -> None:
        self._ready: OrderedDict[Item, None] = OrderedDict()
        self._turns: dict[str, _Turn] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no call waits, and none is sent and unanswered."""
        return not self._ready and not self._turns

    @property
    def ready(self) -> int:
        """About how many calls may go now."""
        return len(self._ready)

    def add(self, item: Item) -> None:
        """Puts a call behind those that wait."""
        turn = self._turns.get(item.user)
        (self._ready if turn is None else turn.later)[item] = None

    def withdraw(self, item: Item) -> None:
        """Forgets a call that was not taken."""
        self._ready.pop(item, None)
        turn = self._turns.get(item.user)
        if turn is not None:
            turn.later.pop(item, None)

    def withdraw_all(self) -> list[Item]:
        """Forgets all calls that were not taken, and returns those whose callers wait."""
        queues = [self._ready, *(turn.later for turn in self._turns.values())]
        items = [item for queue in queues for item in queue if not item.answer.done()]
        for queue in queues:
            queue.clear()
        return items

    def take(self) -> Group:
        """Takes the calls that may go now and fit into a request; the group may be empty.

        A call that is too large for any CallMany is a group of its own.
        """
        group = Group()
        size = 0
        while self._ready and len(group.items) < ITEMS_MAX:
            item = next(iter(self._ready))
            item_size = item.request.ByteSize() + _ITEM_BYTES
            if group.items and size + item_size > BYTES_MAX:
                break
            del self._ready[item]
            # A caller who has just been cancelled has not yet withdrawn its call.
            if not item.answer.done() and self._admit(item, group):
                item.group = group
                group.items[len(group.items)] = item
                size += item_size
        group.size = group.callers = len(group.items)
        return group

    def _admit(self, item: Item, group: Group) -> bool:
        turn = self._turns.get(item.user)
        if turn is None:
            turn = self._turns[item.user] = _Turn(group)
        key = item.request.idempotency_key
        if turn.group is not group or turn.later or key in turn.keys:
            turn.later[item] = None
            return False
        turn.keys.add(key)
        turn.unanswered += 1
        return True

    def answered(self, item: Item) -> None:
        """Notes that a call that was taken has its answer, or will get none."""
        item.group = None
        turn = self._turns[item.user]
        turn.unanswered -= 1
        if not turn.unanswered:
            del self._turns[item.user]
            self._ready.update(turn.later)
