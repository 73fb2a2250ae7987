"""A proxy between a client and the service that keeps each call, and holds calls up on demand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import Message
from kit.waiting import patience
from kit.wire import SERVICE, request_of


@dataclass
class CallProxy:
    """Passes calls on as they are.

    Attributes:
        target: where it listens.
        received: the calls that came, by name and request.
        without: the calls that it answers with UNIMPLEMENTED.
        flowing: while it is not set, arriving calls wait here.
        cancelled: the calls that the client cancelled before their end.
    """

    target: str
    channel: grpc.aio.Channel
    received: list[tuple[str, Message]] = field(default_factory=list)
    without: set[str] = field(default_factory=set)
    flowing: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: list[str] = field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        return [method for method, _ in self.received]

    @property
    def keys(self) -> list[str]:
        """The idempotency keys of all spends, holds and captures, in the order of arrival."""
        return [
            single.idempotency_key for _, request in self.received for single in singles(request)
        ]

    async def responses(self, method: str, request: bytes, context) -> AsyncIterator[bytes]:
        self.received.append((method, request_of(method).FromString(request)))
        if method in self.without:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        path = f"/{SERVICE.full_name}/{method}"
        try:
            await self.flowing.wait()
            call = self.channel.unary_stream(path)(
                request,
                timeout=context.time_remaining(),
                metadata=[
                    pair for pair in context.invocation_metadata() if pair[0] == "authorization"
                ],
            )
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as failure:
            await context.abort(
                failure.code(), failure.details(), tuple(failure.trailing_metadata() or ())
            )
        except asyncio.CancelledError:
            self.cancelled.append(method)
            raise


def singles(request: Message) -> list[Message]:
    """The requests of the single calls that a request contains."""
    if not hasattr(request, "items"):
        return [request]
    return [getattr(item, item.WhichOneof("call")) for item in request.items]


@asynccontextmanager
async def call_proxy(target: str) -> AsyncIterator[CallProxy]:
    """Runs a proxy in front of the service at `target`."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    async with grpc.aio.insecure_channel(target) as channel:
        proxy = CallProxy(f"127.0.0.1:{port}", channel)
        proxy.flowing.set()

        def handler(method):
            async def responses(request, context):
                async for response in proxy.responses(method, request, context):
                    yield response

            return grpc.unary_stream_rpc_method_handler(responses)

        handlers = {method.name: handler(method.name) for method in SERVICE.methods}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),)
        )
        await server.start()
        try:
            yield proxy
        finally:
            await server.stop(patience(1))
