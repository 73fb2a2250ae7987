"""Another author's program with the gateway mounted in it, for `uvicorn kit.host_app:app`."""

import os
from contextlib import asynccontextmanager

from kit.gateways import named_users
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from credit_service.client import CreditClient
from credit_service.gateway import Gateway


async def home(_):
    return PlainTextResponse("home")


def made() -> Starlette:
    """Makes the app, in the process that serves it."""
    client = CreditClient(os.environ["HOST_APP_TARGET"])
    gateway = Gateway(client, users=named_users)

    @asynccontextmanager
    async def lifespan(_):
        async with client, gateway:
            yield

    return Starlette(routes=[Route("/", home), Mount("/credits", gateway.app)], lifespan=lifespan)
