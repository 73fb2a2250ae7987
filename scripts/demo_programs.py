"""The programs that a demo starts and stops, each in a process of its own."""

import asyncio
import contextlib
import hashlib
import os
import re
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_START_SECONDS = 30


class StoryFailed(Exception):
    """The story cannot go on; the message says why, with the last output of the program."""


@dataclass(frozen=True, slots=True)
class Service:
    """How to reach the running credit service."""

    target: str
    token: str | None
    ca: Path | None


@dataclass(slots=True)
class _Program:
    """A program of ours in a process of its own."""

    name: str
    process: asyncio.subprocess.Process
    hidden: str
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=12))

    async def wait_for(self, pattern: str) -> str:
        """Reads its output until a line matches, and returns the group of the pattern."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                async for line in self._lines():
                    if match := re.search(pattern, line):
                        return match.group(1)
        said = "\n   ".join(self.last_lines) or "nothing"
        raise StoryFailed(f"{self.name} did not start. It said:\n   {said}")

    async def drain(self) -> None:
        """Reads on, because a full pipe stops the program; shows the lines that are not hidden."""
        async for line in self._lines():
            if not re.match(self.hidden, line):
                print(f"{self.name}: {line}", file=sys.stderr, flush=True)

    async def _lines(self) -> AsyncIterator[str]:
        assert self.process.stdout is not None  # noqa: S101  # it was asked for
        async for line in self.process.stdout:
            self.last_lines.append(line.decode(errors="replace").rstrip())
            yield self.last_lines[-1]


@asynccontextmanager
async def running(
    module: str, *arguments: str, ready: str, hidden: str = "", **environment: str
) -> AsyncIterator[str]:
    """Runs a module for the length of the block; yields the group of its readiness line.

    Args:
        module: run as `python -m` does.
        *arguments: its command line.
        ready: a pattern of its readiness line, with one group.
        hidden: a pattern of the beginning of the lines that are not shown after that; by default
            of all lines.
        **environment: variables beside those of this process.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # Ctrl-C must reach only this program, which then stops the others in order.
        start_new_session=True,
    )
    program = _Program(module, process, hidden)
    draining = None
    try:
        ready_line = await program.wait_for(ready)
        draining = asyncio.create_task(program.drain())
        yield ready_line
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_START_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        if draining is not None:
            await draining


def fake_stripe() -> contextlib.AbstractAsyncContextManager[str]:
    """Runs the fake Stripe; yields its address."""
    # It is a tool of the demo and of the tests, so it is not installed with the package.
    path = os.pathsep.join(filter(None, [str(_ROOT / "scripts"), os.environ.get("PYTHONPATH")]))
    return running("fake_stripe", ready=r"fake stripe on (\S+)", PYTHONPATH=path)


def bridge(
    service: Service, *, stripe: str, secret: str, token: str, packs: Path
) -> contextlib.AbstractAsyncContextManager[str]:
    """Runs the bridge; yields its port."""
    settings = {
        "listen": "127.0.0.1:0",
        "credit_target": service.target,
        "stripe_address": stripe,
        "stripe_key": "sk_test_of_the_demo",
        "webhook_secrets": f"test:{secret}",
        "catalog": str(packs),
        "checkout_token_sha256": hashlib.sha256(token.encode()).hexdigest(),
        "unready_seconds": "0",
        "top_up_seconds": "0.2",
        "top_up_return_url": "https://app.example.com/credits",
    }
    if service.token:
        settings["credit_token"] = service.token
    if service.ca:
        settings["credit_tls_ca"] = str(service.ca)
    variables = {f"STRIPE_BRIDGE_{name.upper()}": value for name, value in settings.items()}
    return running("stripe_bridge", "serve", ready=r"listens on \S+?:(\d+)", **variables)
