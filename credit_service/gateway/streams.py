"""Live balances as Server-Sent Events: one watch of the service per user, shared by all tabs."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson
import structlog

from credit_service.errors import AccessError, CreditError, UserNotFound
from credit_service.gateway import metrics, render
from credit_service.gateway.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from starlette.types import Receive, Scope, Send

    from credit_service.client import CreditClient
    from credit_service.gateway.rate_limits import Limits
    from credit_service.gateway.users import User
    from credit_service.v1 import credit_service_pb2 as pb

_log = structlog.get_logger()

# How long before the user's token a stream ends.
_BEFORE_EXPIRY_SECONDS = 5.0
_PAUSE_SECONDS_MAX = 5.0
_HEARTBEAT = b": hb\n\n"


def _event(name: str, data: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))


class Stream:
    """One open page. It holds only the newest state, so a slow page costs the others nothing."""

    def __init__(self, watch: _Watch, ends_at: float, ending: str) -> None:
        self.user_id = watch.user_id
        self._watch = watch
        self._ends_at = ends_at
        self._ending = ending
        self._ended: str | None = None
        self._changed = asyncio.Event()
        self._account: bytes | None = None
        self._link: bytes | None = None

    @property
    def ended(self) -> str | None:
        """Why the stream ended; None while it is open."""
        return self._ended

    def changed(self) -> None:
        """Wakes the stream: there may be something to send."""
        self._changed.set()

    def end(self, reason: str) -> None:
        """Ends the stream; the first reason counts."""
        self._ended = self._ended or reason
        self._changed.set()

    async def next(self, heartbeat_seconds: float) -> bytes:
        """Waits for what to send next; empty after the last event."""
        loop = asyncio.get_running_loop()
        quiet_at = loop.time() + heartbeat_seconds
        while True:
            if due := self._due():
                return due
            if self._ended is not None:
                return b""
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(quiet_at, self._ends_at)):
                    await self._changed.wait()
            if loop.time() >= self._ends_at:
                self.end(self._ending)
            elif loop.time() >= quiet_at:
                return _HEARTBEAT

    def _due(self) -> bytes:
        watch, due = self._watch, b""
        if watch.link is not self._link:
            self._link = watch.link
            due += watch.link or b""
        if watch.account is not self._account:
            self._account = watch.account
            due += watch.account or b""
        return due


class _Watch:
    """Watches one user at the service, for all streams of that user."""

    def __init__(self, client: CreditClient, user_id: UUID, link_seconds: float) -> None:
        self.user_id = user_id
        # The newest account and the newest state of the link, as events; None: none yet.
        self.account: bytes | None = None
        self.link: bytes | None = None
        self.streams: list[Stream] = []  # the oldest first
        self._client = client
        self._link_seconds = link_seconds
        self._up = True
        self._down_timer: asyncio.TimerHandle | None = None
        self._up_until: str | None = None
        self._again = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def look_again(self) -> None:
        """Tries again at once if the service did not know the user."""
        self._again.set()

    async def close(self) -> None:
        """Ends the watch."""
        self._cancel_timer()
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        pause = 0.0
        while True:
            self._expect_an_answer()
            try:
                watched = self._client.watch_user_credit(self.user_id, take_up=False)
                async with contextlib.aclosing(watched) as states:
                    async for credit in states:
                        pause = 0.0
                        self._show(credit)
            except UserNotFound:
                # Unknown until the first purchase: an empty account, checked from time to time.
                self._show(render.NO_ACCOUNT)
                pause = min(max(1.0, pause * 1.5), _PAUSE_SECONDS_MAX)
            except CreditError as error:
                if isinstance(error, AccessError):
                    metrics.ALERTS.labels("MISCONFIGURED").inc()
                    _log.error("the service refuses the gateway", problem=str(error))
                pause = min(max(0.2, pause * 2), _PAUSE_SECONDS_MAX)
            except Exception:
                # A bug must not end the streams: they wait, and the log has the trace.
                _log.exception("watch failed")
                pause = _PAUSE_SECONDS_MAX
            await self._pause(pause * random.uniform(0.5, 1))  # noqa: S311

    async def _pause(self, seconds: float) -> None:
        self._again.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._again.wait()

    def _show(self, credit: pb.UserCredit) -> None:
        self._cancel_timer()
        event = _event("account", render.account(credit))
        if event != self.account:
            self.account = event
        if not self._up:
            self._up = True
            self.link = _event("link", {"up": True, "as_of": render.time(datetime.now(UTC))})
        self._wake()

    def _expect_an_answer(self) -> None:
        """Shows the service as away unless it answers in time."""
        if self._up and self._down_timer is None:
            # The account that pages show was true until now.
            now = render.time(datetime.now(UTC))
            self._up_until = now if self.account is not None else None
            loop = asyncio.get_running_loop()
            self._down_timer = loop.call_later(self._link_seconds, self._down)

    def _down(self) -> None:
        self._down_timer = None
        self._up = False
        self.link = _event("link", {"up": False, "as_of": self._up_until})
        self._wake()

    def _cancel_timer(self) -> None:
        if self._down_timer is not None:
            self._down_timer.cancel()
            self._down_timer = None

    def _wake(self) -> None:
        for stream in self.streams:
            stream.changed()


class Streams:
    """All open streams of this process.

    Attributes:
        count: the number of open streams.
    """

    def __init__(self, client: CreditClient, limits: Limits) -> None:
        self._client = client
        self._limits = limits
        self._watches: dict[UUID, _Watch] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self.count = 0
        self._stopping = False

    def open(self, user: User) -> Stream:
        """Opens a stream for a user; the caller closes it.

        Raises:
            Problem: 503, too many streams are open in this process, or it is stopping.
        """
        if self._stopping:
            raise Problem("STOPPING")
        if self.count >= self._limits.streams:
            raise Problem("TOO_MANY_STREAMS")
        now = asyncio.get_running_loop().time()
        # Not all of them at once, so that a restart is not repeated every 15 minutes.
        lasts = self._limits.stream_seconds * random.uniform(0.9, 1)  # noqa: S311
        ends_at, ending = now + lasts, "max_age"
        if user.expires_at is not None:
            left = user.expires_at - time.time() - _BEFORE_EXPIRY_SECONDS
            if now + left < ends_at:
                ends_at, ending = now + left, "token_expiring"
        watch = self._watches.get(user.id)
        if watch is None:
            watch = _Watch(self._client, user.id, self._limits.link_seconds)
            self._watches[user.id] = watch
            metrics.WATCHES.inc()
        stream = Stream(watch, ends_at, ending)
        open_ones = [each for each in watch.streams if each.ended is None]
        if len(open_ones) >= self._limits.streams_per_user:
            open_ones[0].end("replaced")
        watch.streams.append(stream)
        self.count += 1
        metrics.STREAMS.inc()
        return stream

    def close(self, stream: Stream) -> None:
        """Forgets a stream; with the last one of a user the watch ends."""
        watch = self._watches[stream.user_id]
        watch.streams.remove(stream)
        self.count -= 1
        metrics.STREAMS.dec()
        metrics.STREAM_ENDS.labels(stream.ended or "gone").inc()
        if not watch.streams:
            del self._watches[stream.user_id]
            metrics.WATCHES.dec()
            task = asyncio.create_task(watch.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def look_again(self, user_id: UUID) -> None:
        """Asks the service again at once about a user that it did not know, if one is watched."""
        if watch := self._watches.get(user_id):
            watch.look_again()

    def stop(self) -> None:
        """Ends every stream and refuses new ones."""
        self._stopping = True
        for watch in self._watches.values():
            for stream in watch.streams:
                stream.end("stopping")

    async def aclose(self) -> None:
        """Stops, and waits until every watch has ended."""
        self.stop()
        for watch in list(self._watches.values()):
            await watch.close()
        if self._closing:
            await asyncio.wait(self._closing)


class EventStream:
    """Sends a stream as `text/event-stream` until it ends or the page leaves."""

    HEADERS = (
        (b"content-type", b"text/event-stream"),
        # no-transform, because a proxy that compresses may hold events back. nginx buffers unless
        # the second header forbids it.
        (b"cache-control", b"no-store, no-transform"),
        (b"x-accel-buffering", b"no"),
    )

    def __init__(self, streams: Streams, stream: Stream, limits: Limits) -> None:
        self._streams = streams
        self._stream = stream
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the head, then events as they come."""
        stream = self._stream
        leaving = asyncio.create_task(self._until_gone(receive))
        try:
            await send(
                {"type": "http.response.start", "status": 200, "headers": list(self.HEADERS)}
            )
            if scope["method"] == "HEAD":
                stream.end("gone")
                await send({"type": "http.response.body"})
                return
            while piece := await stream.next(self._limits.heartbeat_seconds):
                if stream.ended == "gone":
                    return
                await self._send(send, {"body": piece, "more_body": True})
            if stream.ended == "gone":
                return
            last = _event("end", {"reason": stream.ended})
            await self._send(send, {"body": last, "more_body": False})
        except TimeoutError:
            # A page that has not read for so long may connect again.
            stream.end("slow")
        finally:
            self._streams.close(stream)
            leaving.cancel()

    async def _send(self, send: Callable[..., Awaitable[None]], message: dict[str, object]) -> None:
        async with asyncio.timeout(self._limits.write_seconds):
            await send({"type": "http.response.body", **message})

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._stream.end("gone")
