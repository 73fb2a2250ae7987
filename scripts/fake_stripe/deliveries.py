"""Delivers events as Stripe does: at least once, in no order, until an endpoint answers 2xx.

https://docs.stripe.com/webhooks: every try has a fresh timestamp and signature; an event without
a 2xx answer in time is tried again later, with growing pauses.
"""

import asyncio
import heapq
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import h11
from stripe import WebhookSignature

from .posting import Cut, Poster
from .stripe import Endpoint, Event, Stripe

_ANSWER_KEPT = 200  # bytes; a run has many answers


@dataclass(slots=True)
class Pace:
    """The pace of deliveries.

    Attributes:
        mode: `on`; `hold` keeps events back; `lose` forgets them for good.
        timeout_seconds: an answer that takes longer counts as none.
        retry_seconds: the gap after the first failure; it doubles with every further one.
        retry_cap_seconds: the longest gap.
        attempts: the number of tries after which an event is given up.
        concurrency: how many requests at once.
        clock_skew_seconds: added to the timestamps that are signed.
    """

    mode: str = "on"
    timeout_seconds: float = 20.0
    retry_seconds: float = 0.05
    retry_cap_seconds: float = 1.0
    attempts: int = 1000
    concurrency: int = 100
    clock_skew_seconds: int = 0


@dataclass(slots=True, eq=False)
class Delivery:
    """One event on its way to one endpoint."""

    event: Event
    endpoint: Endpoint
    attempts: int = 0
    done: bool = False
    repeats: bool = False


@dataclass(slots=True)
class Attempt:
    """One request and its result; `status` is None if no answer was read."""

    event: str
    type: str
    object: str
    endpoint: str
    attempt: int
    status: int | None
    answer: str
    fault: str | None
    at: float
    seconds: float
    noise: bool = False


@dataclass(slots=True)
class Tally:
    """The counts of all deliveries so far."""

    answers: Counter[str] = field(default_factory=Counter)
    delivered: int = 0
    lost: int = 0
    given_up: int = 0


class Couriers:
    """Delivers the events in the outbox."""

    def __init__(self, stripe: Stripe) -> None:
        self._stripe = stripe
        self.pace = Pace()
        self.record: list[Attempt] = []
        self.tally = Tally()
        self.held: list[Delivery] = []
        self._entered = 0
        self._due: list[tuple[float, int, Delivery]] = []
        self._numbers = itertools.count()
        self._posters: dict[str, Poster] = {}
        self._done = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    @property
    def on_the_way(self) -> int:
        """How many deliveries have not ended; events that are held back do not count."""
        return len(self._stripe.outbox) + self._entered

    async def until_idle(self, most: int = 0) -> None:
        """Waits until at most this number of deliveries are running."""
        while self.on_the_way > most:
            self._done.clear()
            await self._done.wait()

    async def run(self) -> None:
        """Delivers until it is cancelled."""
        try:
            while True:
                self._collect()
                free = self.pace.concurrency - len(self._running)
                now = time.monotonic()
                while free > 0 and self._due and self._due[0][0] <= now:
                    self._start(heapq.heappop(self._due)[2])
                    free -= 1
                self._stripe.mail.clear()
                if self._stripe.outbox:
                    continue
                wait = self._due[0][0] - now if self._due and free > 0 else None
                try:
                    async with asyncio.timeout(wait):
                        await self._stripe.mail.wait()
                except TimeoutError:
                    pass
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            for poster in self._posters.values():
                await poster.close()

    def release(self) -> int:
        """Sends the events that were held back; returns how many."""
        released, self.held = self.held, []
        for delivery in released:
            self._enter(delivery, 0.0)
        self.pace.mode = "on"
        self._stripe.mail.set()
        return len(released)

    def hurry(self) -> int:
        """Makes every delivery that waits for its next try due now; returns how many."""
        now = time.monotonic()
        self._due = [(min(due, now), number, each) for due, number, each in self._due]
        heapq.heapify(self._due)
        self._stripe.mail.set()
        return len(self._due)

    def send_again(self, event: Event) -> None:
        """Delivers an event once more, as a click in the Dashboard does."""
        self._stripe.send(event)

    def _collect(self) -> None:
        faults = self._stripe.faults
        while self._stripe.outbox:
            event, endpoint = self._stripe.outbox.popleft()
            delivery = Delivery(event, endpoint)
            if self.pace.mode == "lose" or faults.strikes("lose"):
                self.tally.lost += 1
                self._forget(delivery)
                self._done.set()
            elif self.pace.mode == "hold":
                self.held.append(delivery)
                self._done.set()
            else:
                self._enter_first(delivery)

    def _enter_first(self, delivery: Delivery) -> None:
        faults = self._stripe.faults
        late = faults.strikes("delay")
        delivery.repeats = faults.strikes("duplicate")
        longest = faults.shares.delay_seconds
        self._enter(delivery, faults.random.uniform(0, longest) if late else 0.0)

    def _enter(self, delivery: Delivery, seconds: float) -> None:
        self._entered += 1
        due = time.monotonic() + seconds
        heapq.heappush(self._due, (due, next(self._numbers), delivery))

    def _start(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._carry(delivery))
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._done.set()
        self._stripe.mail.set()
        if not task.cancelled() and (failure := task.exception()):
            raise failure

    async def _carry(self, delivery: Delivery) -> None:
        if delivery.endpoint.status == "deleted":
            self.tally.given_up += not delivery.done
            self._forget(delivery)
            self._entered -= 1
            return
        if self._stripe.faults.strikes("noise"):
            await self._noise(delivery)
        delivery.attempts += 1
        status = await self._try(delivery)
        ok = status is not None and 200 <= status < 300
        if ok and not delivery.done:
            delivery.done = True
            delivery.event.pending -= 1
            self.tally.delivered += 1
            self._forget(delivery)
        if ok and delivery.repeats:
            delivery.repeats = False
            self._enter(delivery, self._stripe.faults.random.uniform(0, 0.2))
        elif not ok and not delivery.done:
            if delivery.attempts < self.pace.attempts and delivery.endpoint.status == "enabled":
                gap = self.pace.retry_seconds * 2 ** min(delivery.attempts - 1, 30)
                self._enter(delivery, min(gap, self.pace.retry_cap_seconds))
            else:
                self.tally.given_up += 1
                self._forget(delivery)
        # Changed only now, so that the fake never looks idle between two tries.
        self._entered -= 1

    def _forget(self, delivery: Delivery) -> None:
        self._stripe.undelivered.pop((delivery.event.id, delivery.endpoint.id), None)
        self._stripe.keep()

    async def _try(self, delivery: Delivery) -> int | None:
        """Sends one request; returns the status, or None if Stripe would not have received one."""
        faults, endpoint = self._stripe.faults, delivery.endpoint
        body = self._stripe.body_for(delivery.event, endpoint)
        fault = next((each for each in _CUTS if faults.strikes(each)), None)
        return await self._post(
            delivery, body, self._signature(body, endpoint.secrets), fault=fault
        )

    async def _post(
        self,
        delivery: Delivery,
        body: bytes,
        signature: str,
        *,
        fault: str | None = None,
        noise: bool = False,
    ) -> int | None:
        poster = self._posters.setdefault(delivery.endpoint.url, Poster(delivery.endpoint.url))
        headers = [*_HEADERS, ("Stripe-Signature", signature)]
        status: int | None = None
        at, begun = time.time(), time.perf_counter()
        try:
            async with asyncio.timeout(self.pace.timeout_seconds):
                status, text = await poster.post(body, headers, cut=_CUTS.get(fault or ""))
            answer = text[:_ANSWER_KEPT].decode(errors="replace")
        except (Cut, OSError, h11.RemoteProtocolError, TimeoutError) as failure:
            answer = f"{type(failure).__name__}: {failure}"
        event = delivery.event
        self.record.append(
            Attempt(
                event.id, event.type, event.object_id, delivery.endpoint.id, delivery.attempts,
                status, answer, fault, at, time.perf_counter() - begun, noise,
            )
        )  # fmt: skip
        self.tally.answers[f"noise {status}" if noise else str(status or "none")] += 1
        return None if fault else status

    async def _noise(self, delivery: Delivery) -> None:
        body = self._stripe.body_for(delivery.event, delivery.endpoint)
        secrets = delivery.endpoint.secrets
        kind = self._stripe.faults.random.choice(("secret", "body", "timestamp"))
        signature = self._signature(body, ["whsec_of_somebody_else"])
        if kind == "body":
            signature = self._signature(body, secrets)
            body = body.replace(b"livemode", b"livemodf", 1)
        elif kind == "timestamp":
            signature = self._signature(body, secrets, age_seconds=3600)
        await self._post(delivery, body, signature, fault=f"noise_{kind}", noise=True)

    def _signature(self, body: bytes, secrets: list[str], age_seconds: int = 0) -> str:
        timestamp = int(time.time()) + self.pace.clock_skew_seconds - age_seconds
        signed = [
            WebhookSignature.generate_signature_header(body.decode(), secret, timestamp)
            for secret in secrets
        ]
        # A secret that is being rolled adds its own v1 to the one timestamp.
        return ",".join([signed[0], *(each.partition(",")[2] for each in signed[1:])])

    def summary(self) -> dict[str, Any]:
        """Counts and the quantiles of the answers' times, for the control routes."""
        times = sorted(each.seconds for each in self.record if each.status and not each.noise)
        quantiles = {
            name: times[min(len(times) - 1, int(len(times) * share))] if times else None
            for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        }
        return {
            "events": len(self._stripe.event_order),
            "delivered": self.tally.delivered,
            "lost": self.tally.lost,
            "given_up": self.tally.given_up,
            "held": len(self.held),
            "on_the_way": self.on_the_way,
            "attempts": len(self.record),
            "answers": dict(self.tally.answers),
            "answer_seconds": quantiles,
        }


_CUTS = {"cut_sending": "sending", "cut_waiting": "waiting", "cut_answer": None}
_HEADERS = [
    ("Content-Type", "application/json; charset=utf-8"),
    ("User-Agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)"),
    ("Accept", "*/*; q=0.5, application/xml"),
]
