"""Any ASGI app on a real socket, as a separate program would serve it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


@asynccontextmanager
async def serving(app: object, *, port: int = 0, **options: object) -> AsyncIterator[str]:
    """Serves an app for the length of the block; yields its address. Port 0: any free one."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        # Longer than httpx keeps a connection, so that none is reused while this side closes it.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
        **options,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()
