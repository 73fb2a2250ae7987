"""`python -m fake_stripe`: runs the fake until SIGTERM or SIGINT."""

import argparse
import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.routing import Route

from . import keeping
from .control import Control, add_endpoint
from .deliveries import Couriers
from .faults import USUAL
from .routes import Api
from .stripe import Stripe
from .versions import NEWEST


def application(stripe: Stripe) -> Starlette:
    """The app: the API and the control routes; it runs the deliveries too."""
    couriers, api = Couriers(stripe), Api(stripe)
    control = Control(stripe, couriers, api)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        carrying = asyncio.create_task(couriers.run())
        yield
        carrying.cancel()
        await asyncio.gather(carrying, return_exceptions=True)

    every = ["GET", "POST", "DELETE"]
    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/_fake/pay/{id}", control.pay_page, methods=["GET", "POST"]),
            Route("/_fake/{action}", control.__call__, methods=["GET", "POST"]),
            Route("/{path:path}", api.__call__, methods=every),
        ],
    )


async def _serve(arguments: argparse.Namespace) -> None:
    if arguments.keep and arguments.keep.exists():
        stripe = keeping.kept(arguments.keep)
    else:
        stripe = Stripe(live=arguments.live, api_version=arguments.api_version)
    if arguments.keep:
        stripe.keep = functools.partial(keeping.keep, stripe, arguments.keep)
    if arguments.faults is not None:
        stripe.faults.random.seed(arguments.faults)
        stripe.faults.set(USUAL)
    if arguments.deliver_to:
        add_endpoint(stripe, url=arguments.deliver_to, secret=arguments.secret)
    listener = socket.create_server(("127.0.0.1", arguments.port), backlog=1024)
    stripe.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        application(stripe),
        log_level="critical",
        access_log=False,
        # Longer than httpx keeps a connection, so that none is reused while it is closed here.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
    )
    # The socket listens already, so a reader of this line can connect.
    print(f"fake stripe on {stripe.base_url}", flush=True)
    await uvicorn.Server(config).serve(sockets=[listener])


def main() -> None:
    """Reads the arguments and runs the fake."""
    parser = argparse.ArgumentParser(prog="python -m fake_stripe", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes any free one (%(default)s)")
    parser.add_argument("--deliver-to", metavar="URL", help="where events are posted to")
    parser.add_argument("--secret", default="whsec_fake", help="of the signatures (%(default)s)")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="keep the state in FILE; slow with many objects"
    )
    parser.add_argument("--live", action="store_true", help="live mode instead of test mode")
    parser.add_argument("--api-version", default=NEWEST, help="version of the events (%(default)s)")
    parser.add_argument("--faults", type=int, metavar="SEED", help="draw the usual faults from it")
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
