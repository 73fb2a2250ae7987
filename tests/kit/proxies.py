"""nginx in front of a program of ours, configured as docs/web.md says."""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from kit.paths import ROOT
from kit.programs import free_port
from kit.waiting import eventually

# On Debian it is not on the PATH of ordinary users.
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))

_CONFIGURATION = """
daemon off;
{user}
worker_processes 1;
pid {place}/nginx.pid;
error_log {place}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {place}/body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    proxy_cache_path {place}/cache keys_zone=shared:1m;
    # As eager to keep and to compress as a configuration can be.
    proxy_cache shared;
    proxy_cache_valid any 10m;
    gzip on;
    gzip_proxied any;
    gzip_min_length 1;
    gzip_types text/event-stream application/json;
    server {{
        listen 127.0.0.1:{port};
        add_header X-Cache $upstream_cache_status always;
        {location}
    }}
}}
"""


def documented_location(gateway_port: int) -> str:
    """The nginx block of docs/web.md, for a gateway on a port."""
    (block,) = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs/web.md").read_text(), re.DOTALL)
    assert "127.0.0.1:8082" in block
    return block.replace("127.0.0.1:8082", f"127.0.0.1:{gateway_port}")


@asynccontextmanager
async def nginx(place: Path, location: str) -> AsyncIterator[str]:
    """Runs nginx, with a cache shared by all, for the length of the block; yields its address.

    Args:
        place: an empty directory that its workers may enter.
        location: the `location` blocks.
    """
    program = shutil.which("nginx", path=_PATH)
    if program is None:
        pytest.skip("nginx is not installed")
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    configuration = place / "nginx.conf"
    configuration.write_text(
        _CONFIGURATION.format(place=place, port=port, location=location, user=user)
    )
    command = (program, "-p", place, "-c", configuration, "-e", place / "error.log")
    running = await asyncio.create_subprocess_exec(*command)
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient() as http:

            async def answers() -> bool:
                assert running.returncode is None, (place / "error.log").read_text()
                try:
                    return bool(await http.get(url))
                except httpx.TransportError:
                    return False

            await eventually(answers)
        yield url
    finally:
        running.terminate()
        await running.wait()
