"""An endpoint for the fake Stripe that keeps the requests that it receives."""

import asyncio
import json
from contextlib import asynccontextmanager

import h11


class Receiver:
    """An endpoint that keeps its requests and answers as a test chooses, by default 200."""

    def __init__(self):
        self.requests = []
        self.answers = []
        self.broken = 0

    @property
    def events(self):
        return [json.loads(body) for _headers, body in self.requests]

    async def serve(self, reader, writer):
        try:
            await self._serve(reader, writer)
        except (h11.RemoteProtocolError, ConnectionError):
            self.broken += 1
        finally:
            writer.close()

    async def _serve(self, reader, writer):
        protocol = h11.Connection(h11.SERVER)
        headers, body = {}, b""
        while True:
            event = protocol.next_event()
            if event is h11.NEED_DATA:
                protocol.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                headers, body = {k.decode(): v.decode() for k, v in event.headers}, b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self.requests.append((headers, body))
                answer = self.answers.pop(0) if self.answers else 200
                if answer is None:
                    return
                reply = h11.Response(status_code=answer, headers=[("Content-Length", "0")])
                writer.write(protocol.send(reply) + protocol.send(h11.EndOfMessage()))
                await writer.drain()
                protocol.start_next_cycle()
            elif isinstance(event, h11.ConnectionClosed):
                return


@asynccontextmanager
async def receiving(fake, **fields):
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, backlog=1000)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hooks"
    endpoint = await fake.deliver_to(url, **fields)
    receiver.id = endpoint["id"]
    try:
        yield receiver
    finally:
        await fake.delete_endpoint(receiver.id)
        await fake.idle()
        server.close()
