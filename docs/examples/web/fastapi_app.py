"""An audio app with credits: its own job routes, and the gateway mounted at /credits.

CREDIT_GATEWAY_DEVELOPMENT=true uvicorn --app-dir docs/examples/web fastapi_app:app

The settings of this app are environment variables: CREDIT_TARGET, BRIDGE_URL and CHECKOUT_TOKEN
(both or neither), CHECKOUT_HOSTS, APP_URL, SONG, STEMS.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from credit_service.client import CreditClient
from credit_service.errors import CreditError
from credit_service.gateway import Bridge, DevelopmentUsers, Gateway, User, problem_response

HERE = Path(__file__).resolve().parent
TARGET = os.environ.get("CREDIT_TARGET", "127.0.0.1:50051")
APP_URL = os.environ.get("APP_URL", "http://127.0.0.1:8000")
SONG = Path(os.environ.get("SONG", "song.wav"))
STEMS = Path(os.environ.get("STEMS", "stems"))
STEMS.mkdir(parents=True, exist_ok=True)


@dataclass(slots=True)
class Job:
    """One separation: its user and its progress."""

    user_id: UUID
    state: str = "running"
    written: int = 0
    total: int = 0
    process: asyncio.subprocess.Process | None = field(default=None, repr=False)


class JobRequest(BaseModel):
    """The request of the page: its own name for the job, and the price that it showed."""

    job: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{8,64}$")]
    expected_cost: Annotated[int, Field(ge=0)]


log = logging.getLogger(__name__)
jobs: dict[str, Job] = {}
running: set[asyncio.Task[None]] = set()
client = CreditClient(TARGET)
users = DevelopmentUsers()
bridge = (
    Bridge(
        os.environ["BRIDGE_URL"],
        token=os.environ["CHECKOUT_TOKEN"],
        success_url=f"{APP_URL}/?checkout={{CHECKOUT_SESSION_ID}}",
        cancel_url=f"{APP_URL}/",
        # Stripe's own host, unless a fake Stripe is used.
        checkout_hosts=os.environ.get("CHECKOUT_HOSTS", "checkout.stripe.com").split(","),
    )
    if "BRIDGE_URL" in os.environ
    else None
)
gateway = Gateway(client, users=users, bridge=bridge)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Ends the workers, the gateway and the client with the app."""
    yield
    for job in jobs.values():
        if job.process is not None and job.process.returncode is None:
            job.process.terminate()
    if running:
        await asyncio.wait(running, timeout=5)
    await gateway.aclose()
    await client.close()


app = FastAPI(lifespan=lifespan, openapi_url=None)
app.mount("/credits", gateway.app)


async def signed_in(request: Request) -> User:
    """Identifies the user of a request, as the gateway does."""
    user = await users(request)
    if user is None:
        raise NotSignedInError
    return user


class NotSignedInError(Exception):
    """No user came with the request."""


@app.exception_handler(NotSignedInError)
async def not_signed_in(_request: Request, _error: Exception) -> Response:
    """Answers 401."""
    return JSONResponse({"detail": "Sign in first."}, 401, {"WWW-Authenticate": "Bearer"})


@app.exception_handler(CreditError)
async def refused(_request: Request, error: Exception) -> Response:
    """Answers a refusal as the gateway does: 402 with the shortfall, 409 with the new price ..."""
    assert isinstance(error, CreditError)
    return problem_response(error)


@app.post("/jobs", status_code=202)
async def start(asked: JobRequest, user: Annotated[User, Depends(signed_in)]) -> dict[str, object]:
    """Holds the credits at the price that the user saw, and starts a worker."""
    hold = await client.hold_credits(
        user.id,
        operation="stem_separation",
        expected_cost=asked.expected_cost,
        # The key of the worker's own hold, which therefore goes on with this one.
        idempotency_key=f"hold:{asked.job}:1",
        reference=asked.job,
    )
    if asked.job not in jobs:
        jobs[asked.job] = Job(user.id)
        task = asyncio.create_task(run(asked.job, hold.hold.id))
        running.add(task)
        task.add_done_callback(running.discard)
    return {"job": asked.job}


@app.get("/jobs/{name}")
async def look(name: str, user: Annotated[User, Depends(signed_in)]) -> Response:
    """Shows the progress of a job."""
    job = jobs.get(name)
    if job is None or job.user_id != user.id:
        return JSONResponse({"detail": "There is no such job."}, 404)
    shown: dict[str, object] = {"state": job.state, "written": job.written, "total": job.total}
    if job.state == "done":
        shown["stems"] = [f"/stems/{name}.{stem}.wav" for stem in ("mid", "side")]
    return JSONResponse(shown, headers={"Cache-Control": "no-store"})


async def run(name: str, hold_id: str) -> None:
    """Runs a worker to its end; a hold that it leaves behind is released."""
    job = jobs[name]
    program = str(HERE / "stem_worker.py")
    job.process = await asyncio.create_subprocess_exec(
        *(sys.executable, program, str(job.user_id), name, str(SONG), str(STEMS)),
        *("--target", TARGET),
        stdout=asyncio.subprocess.PIPE,
    )
    assert job.process.stdout is not None
    async for line in job.process.stdout:
        progress = json.loads(line)
        job.written, job.total = progress["written"], progress["total"]
    code = await job.process.wait()
    if code == 0:
        job.state = "done"
        return
    # The worker's own messages are in the log already, because it shares the app's standard error.
    ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    log.error("job %s failed: its worker, process %d, %s", name, job.process.pid, ended)
    # Releasing is only faster than waiting for the hold's end, so a refusal does not matter.
    with suppress(CreditError):
        await client.release_hold(job.user_id, hold_id, idempotency_key=f"release:{name}:1")
    job.state = "failed"


@app.get("/stems/{file}")
async def stem(file: str) -> Response:
    """Sends a stem to anybody who knows the name of its job, which cannot be guessed."""
    path = STEMS / Path(file).name
    if path.suffix != ".wav" or not path.is_file():
        return JSONResponse({"detail": "There is no such stem."}, 404)
    return FileResponse(path, media_type="audio/wav")


@app.middleware("http")
async def strict(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Lets the pages load nothing from elsewhere; the gateway's answers have their own rules."""
    response = await call_next(request)
    response.headers.setdefault(
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src 'self'; media-src 'self'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'",
    )
    return response


app.mount("/", StaticFiles(directory=HERE / "page", html=True))
