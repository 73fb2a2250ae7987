"""The events that an endpoint has not taken yet: in order, one at a time for each user.

The window knows nothing of requests or of the database. A user in it is free, in flight, or blocked
because the first event of the user has failed; later events of the same user wait behind it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container
    from uuid import UUID

    from credit_service.ledger.feed import Value
    from credit_service.rules.feed_values import Place


class Slot:
    """An event in the window.

    Attributes:
        place: the place of the item in the feed.
        item: what happened.
        type: the type of its event.
        first_try: when it was first tried, by the loop's clock; None before that.
        last_try: when it was last tried; 0 before that.
        problem: why it was not taken.
        done: whether the window need not send it any more.
    """

    __slots__ = ("done", "first_try", "item", "last_try", "place", "problem", "type")

    def __init__(self, place: Place, item: Value, kind: str) -> None:
        """Takes an item that was not tried yet."""
        self.place = place
        self.item = item
        self.type = kind
        self.first_try: float | None = None
        self.last_try = 0.0
        self.problem = ""
        self.done = False


class Window:
    """The events that were read and not taken, in the order of the feed.

    Attributes:
        read: how far the feed was read.
        in_flight: users who have an event in flight.
        blocked: users whose first event has failed, and that event.
        parking: slots to be parked, because the endpoint takes other events.
    """

    def __init__(self, place: Place) -> None:
        """Begins at a place of the feed."""
        self.read = place
        self.in_flight: set[UUID] = set()
        self.blocked: dict[UUID, Slot] = {}
        self.parking: dict[Place, Slot] = {}
        self._reached = place
        self._order: deque[Slot] = deque()
        self._users: dict[UUID, deque[Slot]] = {}
        self._free: deque[UUID] = deque()

    def __len__(self) -> int:
        self._advance()
        return len(self._order)

    @property
    def has_free(self) -> bool:
        """Whether an event of some user could be sent now."""
        return bool(self._free)

    @property
    def first(self) -> Slot | None:
        """The first event that is not done."""
        self._advance()
        return self._order[0] if self._order else None

    @property
    def reached(self) -> Place:
        """The place up to which all events are done."""
        self._advance()
        return self._reached if self._order else self.read

    def add(self, slot: Slot, *, park: bool) -> None:
        """Adds the next event of the feed.

        Args:
            slot: the event.
            park: whether an earlier event of the user is parked, so that this one must be too.
        """
        self._order.append(slot)
        user_id = slot.place.user_id
        if park:
            self.parking[slot.place] = slot
        elif user_id in self._users:
            self._users[user_id].append(slot)
        else:
            self._users[user_id] = deque([slot])
            self._free.append(user_id)

    def parking_users(self) -> set[UUID]:
        """The users with events that are still to be parked."""
        return {place.user_id for place in self.parking}

    def take(self, busy: Container[UUID]) -> Slot | None:
        """Takes the next event to send.

        Args:
            busy: users with an event that is being sent from elsewhere.

        Returns:
            The first event of a free user; None if there is none.
        """
        for _ in range(len(self._free)):
            user_id = self._free.popleft()
            if user_id not in busy:
                self.in_flight.add(user_id)
                return self._users[user_id][0]
            self._free.append(user_id)
        return None

    def take_least_tried(self, count: int, busy: Container[UUID]) -> list[Slot]:
        """Takes the first events of free and blocked users, those that were tried longest ago."""
        users = [user_id for user_id in (*self._free, *self.blocked) if user_id not in busy]
        users.sort(key=lambda user_id: self._users[user_id][0].last_try)
        for user_id in users[:count]:
            if user_id in self.blocked:
                del self.blocked[user_id]
            else:
                self._free.remove(user_id)
            self.in_flight.add(user_id)
        return [self._users[user_id][0] for user_id in users[:count]]

    def taken(self, slot: Slot) -> None:
        """Notes that the endpoint has an event, and lets the user's next one follow."""
        user_id = slot.place.user_id
        self.in_flight.discard(user_id)
        slot.done = True
        queue = self._users[user_id]
        queue.popleft()
        if queue:
            self._free.append(user_id)
        else:
            del self._users[user_id]

    def not_taken(self, slot: Slot) -> None:
        """Notes that an event has failed, which blocks its user."""
        user_id = slot.place.user_id
        self.in_flight.discard(user_id)
        self.blocked[user_id] = slot

    def not_sent(self, slot: Slot) -> None:
        """Notes that an event was taken and then not sent after all."""
        self.in_flight.discard(slot.place.user_id)
        self._free.appendleft(slot.place.user_id)

    def park(self, user_id: UUID) -> None:
        """Lets all events of a blocked user be parked."""
        self.blocked.pop(user_id, None)
        for slot in self._users.pop(user_id):
            self.parking[slot.place] = slot

    def parked(self, slots: list[Slot]) -> None:
        """Notes which events have been parked."""
        for slot in slots:
            del self.parking[slot.place]
            slot.done = True

    def unblock(self) -> None:
        """Lets the first event of every blocked user be tried again."""
        self._free.extendleft(self.blocked)
        self.blocked.clear()

    def reached_without(self, slots: list[Slot]) -> Place:
        """The place up to which all events are done once these have been parked."""
        putting = {slot.place for slot in slots}
        reached = self.reached
        for slot in self._order:
            if not slot.done and slot.place not in putting:
                return reached
            reached = slot.place
        return self.read

    def _advance(self) -> None:
        while self._order and self._order[0].done:
            self._reached = self._order.popleft().place
