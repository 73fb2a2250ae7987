"""What every call passes: identity, right, bounds; and on its way back status, log, metrics."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from credit_service import status
from credit_service.errors import CreditError, InternalError, InvalidRequest, Overloaded
from credit_service.rpc import access
from credit_service.rpc.call_log import CALL, Call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from credit_service.rpc.access import Doorkeeper

    Handler = grpc.RpcMethodHandler[Any, Any]

_log = structlog.get_logger()

# A message above the first is refused by gRPC itself, one above the second by us, with a sentence.
MESSAGE_BYTES_MAX = 1024 * 1024
CALL_BYTES_MAX = 64 * 1024

# A batch may replay a thousand of the longest entries, 3.5 KB each. It is also what gRPC's clients
# take unless told otherwise.
ANSWER_BYTES_MAX = 4 * MESSAGE_BYTES_MAX


class Gate(grpc.aio.ServerInterceptor):
    """The interceptor that every call goes through."""

    def __init__(self, doorkeeper: Doorkeeper, calls_in_flight: int) -> None:
        self._doorkeeper = doorkeeper
        self._calls_in_flight = calls_in_flight
        self._in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._handlers: dict[str, Handler] = {}

    async def intercept_service(  # type: ignore[override]  # the stubs know no `None`
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Hands out the guarded handler of a method, which is made once."""
        method: str = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None:
            inner = await continuation(handler_call_details)
            if inner is None or method in access.PUBLIC:
                return inner
            handler = self._handlers[method] = self._guarded(method, inner)
        return handler

    def _guarded(self, method: str, inner: Handler) -> Handler:
        if inner.unary_unary is None:
            return self._guarded_stream(method, inner)
        behaviour: Any = inner.unary_unary
        name = method.rpartition("/")[2]

        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            call = Call(name)
            CALL.set(call)
            if self._in_flight >= self._calls_in_flight:
                await _refuse(call, Overloaded(), context)
            self._in_flight += 1
            self.idle.clear()
            try:
                caller = self._admit(call, method, context)
                if isinstance(request, InvalidRequest):
                    raise request
                access.CALLER.set(caller)
                call.user = getattr(request, "user_id", "")
                call.key = getattr(request, "idempotency_key", "")
                response = await behaviour(request, context)
            except CreditError as error:
                await _refuse(call, error, context)
            except asyncio.CancelledError:
                call.abandoned()
                raise
            except Exception:
                _log.exception("call failed", method=name)
                await _refuse(call, InternalError(), context)
            finally:
                self._in_flight -= 1
                if self._in_flight == 0:
                    self.idle.set()
            call.answered()
            return response

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=_tolerant(inner.request_deserializer, name),
            response_serializer=inner.response_serializer,
        )

    def _guarded_stream(self, method: str, inner: Handler) -> Handler:
        streams_in = inner.stream_stream is not None
        behaviour: Any = inner.stream_stream if streams_in else inner.unary_stream
        name = method.rpartition("/")[2]

        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            call = Call(name, streams=True)
            try:
                access.CALLER.set(self._admit(call, method, context))
                if isinstance(request, InvalidRequest):
                    raise request
                call.user = getattr(request, "user_id", "")
                async for response in behaviour(request, context):
                    await context.write(response)
            except CreditError as error:
                await _refuse(call, error, context)
            except asyncio.CancelledError:
                call.abandoned()
                raise
            except Exception:
                _log.exception("call failed", method=name)
                await _refuse(call, InternalError(), context)
            call.answered()

        if streams_in:
            return grpc.stream_stream_rpc_method_handler(
                answer,
                request_deserializer=inner.request_deserializer,
                response_serializer=inner.response_serializer,
            )
        return grpc.unary_stream_rpc_method_handler(
            answer,
            request_deserializer=_tolerant(inner.request_deserializer, name),
            response_serializer=inner.response_serializer,
        )

    def _admit(
        self, call: Call, method: str, context: grpc.aio.ServicerContext[Any, Any]
    ) -> access.Caller:
        caller = self._doorkeeper.identify(
            context.invocation_metadata() or (), context.auth_context
        )
        call.caller = caller.name
        caller.require(method)
        return caller


async def _refuse(
    call: Call, error: CreditError, context: grpc.aio.ServicerContext[Any, Any]
) -> None:
    call.failed(error)
    answer = status.render(error)
    await context.abort(answer.code, answer.message, answer.trailing_metadata)


def _tolerant(deserialize: Any, name: str) -> Callable[[bytes], Any]:
    """Makes a deserialiser that hands over what is wrong with the bytes instead of raising it.

    gRPC would answer an exception here with a code of its own and no details.
    """
    longest = MESSAGE_BYTES_MAX if name == "BatchSpendCredits" else CALL_BYTES_MAX

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
