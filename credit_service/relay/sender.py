"""Sends one event to one endpoint, once: the request, its time limit, and the answer.

The name is resolved once and the request goes to the very address that was checked, so that a name
server cannot lead it elsewhere in between. The certificate is still verified against the name.
"""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
from yarl import URL

from credit_service.relay import addresses
from credit_service.relay.signatures import signature
from credit_service.runtime.build_info import VERSION

if TYPE_CHECKING:
    from credit_service.relay.endpoints import Endpoint
    from credit_service.relay.event_types import Event

# How much of an answer is read; its body decides nothing.
ANSWER_BYTES_MAX = 64 * 1024

ATTEMPT_SECONDS = 10.0

# How long a connection to one of several addresses of a name may take.
_CONNECT_SECONDS = 3.0

# How long an idle connection is kept; shorter than most servers keep theirs.
_KEPT_SECONDS = 4.0

_PORTS = {"https": 443, "http": 80}


class Result(Enum):
    """How an attempt ended, as the metrics name it."""

    TAKEN = "taken"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    ADDRESS = "address"
    FAULT = "fault"


class Attempt(NamedTuple):
    """How an attempt ended.

    Attributes:
        result: its kind.
        problem: what went wrong, without secrets; empty if the event was taken.
        seconds: how long it took.
    """

    result: Result
    problem: str
    seconds: float

    @property
    def taken(self) -> bool:
        """Whether the endpoint has the event."""
        return self.result is Result.TAKEN


class Sender:
    """Sends events to one endpoint over connections that are kept for a while."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        private: bool,
        connections: int,
        attempt_seconds: float = ATTEMPT_SECONDS,
    ) -> None:
        """Connects to nothing yet.

        Args:
            endpoint: the endpoint.
            private: whether addresses that are not globally routable are allowed.
            connections: the maximum number of open connections.
            attempt_seconds: how long an attempt may take in all.

        Raises:
            OSError: the file of the endpoint's authorities cannot be used.
        """
        context = ssl.create_default_context()
        if endpoint.ca is not None:
            context.load_verify_locations(endpoint.ca)
        url = endpoint.url
        self._endpoint = endpoint
        self._private = private
        self._seconds = attempt_seconds
        self._resolver = addresses.Resolver()
        self._host = (url.hostname or "").encode("idna").decode()
        self._port = url.port or _PORTS[url.scheme]
        self._target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        # Such a session knows no proxy variables, keeps no cookies and unpacks nothing.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=connections, ssl=context, keepalive_timeout=_KEPT_SECONDS
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding"),
        )

    async def close(self) -> None:
        """Closes all connections."""
        await self._session.close()

    async def send(self, event: Event) -> Attempt:
        """Sends an event once.

        Returns:
            How it ended: an answer of 2xx in time means taken. It raises only cancellation.
        """
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._seconds):
                status = await self._post(event)
        except TimeoutError:
            ended = partial(Attempt, Result.TIMEOUT, f"no answer within {self._seconds:g} s")
        except addresses.AddressRefusedError as error:
            ended = partial(Attempt, Result.ADDRESS, str(error))
        except (addresses.NameUnknownError, aiohttp.ClientError, OSError, ValueError) as error:
            ended = partial(Attempt, Result.UNREACHABLE, _problem(error))
        else:
            taken = 200 <= status < 300  # noqa: PLR2004  # RFC 9110
            problem = "" if taken else f"answered {status}"
            ended = partial(Attempt, Result.TAKEN if taken else Result.REFUSED, problem)
        return ended(asyncio.get_running_loop().time() - started)

    async def _post(self, event: Event) -> int:
        endpoint = self._endpoint
        found = await self._resolver.resolve(
            self._host,
            self._port,
            private=self._private,
            only_private=endpoint.url.scheme == "http",
        )
        now = datetime.now(UTC)
        body = event.body.encode()
        headers = {
            "host": endpoint.url.netloc,
            "content-type": "application/json",
            "user-agent": f"credit-service/{VERSION}",
            "webhook-id": event.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": signature(endpoint.secrets, event.id, now, event.body),
        }
        for place, address in enumerate(found, start=1):
            try:
                return await self._request(address, headers, body)
            except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError):
                if place == len(found):
                    raise
        raise AssertionError  # resolve returns one address or more

    async def _request(self, address: str, headers: dict[str, str], body: bytes) -> int:
        host = f"[{address}]" if ":" in address else address
        url = f"{self._endpoint.url.scheme}://{host}:{self._port}{self._target}"
        async with self._session.post(
            URL(url, encoded=True),
            headers=headers,
            data=body,
            allow_redirects=False,
            server_hostname=self._host,
        ) as answer:
            size = 0
            async for part in answer.content.iter_any():
                size += len(part)
                if size >= ANSWER_BYTES_MAX:
                    # The rest would come on this connection, so it is of no further use.
                    answer.close()
                    break
            return answer.status


def _problem(error: Exception) -> str:
    """The fault, without the URL, whose path and query may be a credential."""
    if isinstance(error, aiohttp.ClientResponseError):
        return "the answer is not HTTP"
    return str(error) or f"the connection broke: {type(error).__name__}"
