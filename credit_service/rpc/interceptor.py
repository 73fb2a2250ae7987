"""Every call passes through this: identity, rights, limits; then status, log, metrics."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import structlog

from credit_service import status
from credit_service.errors import (
    CreditError,
    InternalError,
    InvalidRequest,
    LedgerUnavailable,
    Overloaded,
)
from credit_service.rpc import access
from credit_service.rpc.call_log import CALL, Call
from credit_service.rpc.open_calls import ITEMS, OpenItems

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from credit_service.rpc.access import Authenticator
    from credit_service.rpc.open_calls import OpenCall, OpenCalls

    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]

_Answer = TypeVar("_Answer")

_log = structlog.get_logger()

# gRPC itself refuses a message above the first limit; the service refuses one above the second,
# with an explanation.
MESSAGE_BYTES_MAX = 1024 * 1024
CALL_BYTES_MAX = 64 * 1024

# Calls whose requests may be longer than CALL_BYTES_MAX.
REQUEST_BYTES_MAX: Mapping[str, int] = {
    "BatchSpendCredits": MESSAGE_BYTES_MAX,
    "CallMany": 512 * 1024,
}

# A batch may replay a thousand of the longest entries, 3.5 KB each. It is also the
# default maximum of gRPC's clients.
ANSWER_BYTES_MAX = 4 * MESSAGE_BYTES_MAX


class Interceptor(grpc.aio.ServerInterceptor):
    """The interceptor that every call goes through."""

    def __init__(self, authenticator: Authenticator, open_calls: OpenCalls) -> None:
        """Takes what identifies callers, and what counts the open calls."""
        self._authenticator = authenticator
        self._open_calls = open_calls
        self._handlers: dict[str, Handler] = {}

    async def intercept_service(  # type: ignore[override]  # the stubs know no `None`
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Returns the guarded handler of a method; it is made once."""
        method: str = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None:
            inner = await continuation(handler_call_details)
            _, service, name = method.rsplit("/", 2)
            if inner is None or service == access.PUBLIC_SERVICE:
                return inner
            guarded = self._guarded if inner.unary_unary is not None else self._guarded_stream
            handler = self._handlers[method] = guarded(name, inner)
        return handler

    # A handler of a stream of requests is called before a request has been read, so a call can be
    # refused without reading it. On the wire, a call with one request looks the same.

    def _guarded(self, name: str, inner: Handler) -> Handler:
        behaviour: Any = inner.unary_unary
        serialize: Any = inner.response_serializer

        async def respond(request: Any, context: Context, opened: OpenCall) -> bytes:
            response: bytes = serialize(await behaviour(request, context))
            self._open_calls.keep_unsent(opened, len(response))
            opened.await_caller()
            return response

        async def answer(_requests: Any, context: Context) -> bytes:
            return await self._answer(Call(name), context, respond)

        return grpc.stream_unary_rpc_method_handler(
            answer, request_deserializer=_tolerant(inner.request_deserializer, name)
        )

    def _guarded_stream(self, name: str, inner: Handler) -> Handler:
        # CallMany ends by itself, as a call does, and serialises its responses itself.
        many = name == "CallMany"
        streams_in = inner.stream_stream is not None
        behaviour: Any = inner.stream_stream if streams_in else inner.unary_stream
        read: Any = inner.request_deserializer

        async def respond(request: Any, context: Context, opened: OpenCall) -> None:
            if many:
                ITEMS.set(OpenItems(self._open_calls, opened))
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    opened.await_caller()
                    try:
                        await context.write(response)
                    except grpc.aio.InternalError as gone:
                        # The connection is closed, which is not a fault of the service.
                        raise asyncio.CancelledError from gone
                    opened.heard()

        async def answer(requests: Any, context: Context) -> None:
            call = Call(name, streams=not many)
            await self._answer(call, context, respond, requests if streams_in else None)

        return grpc.stream_stream_rpc_method_handler(
            answer,
            request_deserializer=read if streams_in else _tolerant(read, name),
            response_serializer=None if many else inner.response_serializer,
        )

    async def _answer(
        self,
        call: Call,
        context: Context,
        respond: Callable[[Any, Context, OpenCall], Awaitable[_Answer]],
        requests: Any = None,
    ) -> _Answer:
        """Answers a call with `respond`, or with the status of the error.

        Args:
            call: is logged and counted.
            context: of the call.
            respond: takes the request, which is read here, or the stream of requests.
            requests: the stream; None: there is only one request.
        """
        opened = None
        try:
            opened = self._open_calls.admit(context, streams=call.streams)
            # Before the request is read, because a stranger might send it slowly or not at all.
            self._identify(call, context)
            request = await _read(context) if requests is None else requests
            opened.heard()
            if isinstance(request, InvalidRequest):
                raise request
            call.user = getattr(request, "user_id", "")
            call.key = getattr(request, "idempotency_key", "")
            answer = await respond(request, context, opened)
        except asyncio.CancelledError:
            if opened is None or not opened.given_up:
                call.abandoned()
                raise
            # The service is stopping. If gRPC cancelled the call, it would have no reason and no
            # details.
            refusal = _failed(call, LedgerUnavailable())
        except Exception as fault:
            refusal = _failed(call, fault)
        else:
            call.answered()
            return answer
        # Not in `except`, because the fault would be the context of the error that `abort` raises.
        await _abort(context, refusal)
        raise AssertionError  # `abort` always raises, which its type does not say

    def _identify(self, call: Call, context: Context) -> None:
        """Identifies the caller, and checks that it may make the call."""
        CALL.set(call)
        caller = self._authenticator.identify(context.invocation_metadata, context.auth_context)
        call.caller = caller.name
        caller.require_call(call.method)
        access.CALLER.set(caller)


async def _read(context: Context) -> Any:
    """Reads the request; returns an error if the request cannot be used.

    Raises:
        Overloaded: the deadline passed in the meantime, so the caller no longer waits.
    """
    request: Any = await context.read()
    if context.time_remaining() == 0:
        raise Overloaded
    if request is grpc.aio.EOF:
        # gRPC has answered a longer one by itself; this is for the log and the metrics.
        return InvalidRequest("request", f"is missing or longer than {MESSAGE_BYTES_MAX} bytes.")
    return request


def _failed(call: Call, fault: Exception) -> status.Rendered:
    """Records the fault of a call, and returns its status; an unexpected one stays in the log."""
    if isinstance(fault, CreditError):
        error = fault
    else:
        _log.error("call failed", method=call.method, exc_info=fault)
        error = InternalError()
    call.failed(error)
    return status.render(error)


async def _abort(context: Context, refusal: status.Rendered) -> None:
    """Ends a call with a status."""
    try:
        await context.abort(refusal.code, refusal.message, refusal.trailing_metadata)
    except grpc.aio.AbortError as end:
        # gRPC keeps the error in the state of the call, which its frames lead to.
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # gRPC answers every call in a task
        task.add_done_callback(partial(_drop_frames, end))
        raise
    except grpc.aio.InternalError:
        # The caller has just gone. gRPC would log that as an error, with a trace.
        raise asyncio.CancelledError from None


def _drop_frames(end: BaseException, _task: object) -> None:
    end.__traceback__ = None


def _tolerant(deserialize: Any, name: str) -> Callable[[bytes], Any]:
    """Makes a deserialiser that returns the error in the bytes instead of raising it.

    gRPC would answer an exception here with a code of its own and no details.
    """
    longest = REQUEST_BYTES_MAX.get(name, CALL_BYTES_MAX)

    def read(data: bytes) -> Any:
        if len(data) > longest:
            return InvalidRequest(
                "request", f"has {len(data)} bytes; the maximum is {longest} for {name}."
            )
        try:
            return deserialize(data)
        except Exception:  # protobuf's own error, whatever its version calls it
            return InvalidRequest("request", f"is not a {name} request.")

    return read
