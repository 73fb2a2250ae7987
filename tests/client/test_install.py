"""What a worker installs to have the client: three packages and ours."""

import asyncio
import re
import subprocess
import sys
import textwrap

import pytest
from kit.checkouts import copy_checkout
from kit.documents import README, Shell, snippets
from kit.paths import ROOT
from kit.waiting import patience


def test_it_imports_nothing_but_grpc_and_protobuf():
    program = """
        import sys

        ALLOWED = sys.stdlib_module_names | {"credit_service", "google", "grpc"}
        ALLOWED |= {"typing_extensions"}  # grpcio's own

        class Forbids:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] not in ALLOWED:
                    raise ImportError(f"a worker has no {name}")

        sys.meta_path.insert(0, Forbids())
        from credit_service.client import CreditClient

        try:
            import asyncpg
        except ImportError:
            print(*sorted(name for name in sys.modules if name.startswith("credit_service")))
    """
    ended = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(60),
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [
        "credit_service",
        "credit_service.client",
        "credit_service.client.accounts",
        "credit_service.client.blocking",
        "credit_service.client.blocking_accounts",
        "credit_service.client.blocking_connection",
        "credit_service.client.blocking_credits",
        "credit_service.client.blocking_feed",
        "credit_service.client.blocking_grants",
        "credit_service.client.blocking_holds",
        "credit_service.client.blocking_top_ups",
        "credit_service.client.call_queue",
        "credit_service.client.channel",
        "credit_service.client.coalescing",
        "credit_service.client.connection",
        "credit_service.client.credit_client",
        "credit_service.client.credits",
        "credit_service.client.cursor_file",
        "credit_service.client.feed",
        "credit_service.client.grants",
        "credit_service.client.held_work",
        "credit_service.client.holds",
        "credit_service.client.loop_thread",
        "credit_service.client.retries",
        "credit_service.client.top_ups",
        "credit_service.errors",
        "credit_service.fields",
        "credit_service.status",
        "credit_service.v1",
        "credit_service.v1.credit_service_pb2",
        "credit_service.v1.credit_service_pb2_grpc",
    ]


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_a_worker_installs_the_client_as_the_readme_says_and_calls(service, tmp_path):
    shell = Shell(copy_checkout(tmp_path / "checkout"), {})
    (install,) = snippets(README, "The client in a project of its own", "sh")
    await asyncio.to_thread(shell.run, install, seconds=300)
    listed = shell.run("worker/bin/pip check >&2; worker/bin/pip list --format=freeze")
    lock = (ROOT / "scripts/worker-requirements.lock").read_text()
    pinned = re.findall(r"^[\w-]+==[\w.]+", lock, re.MULTILINE)
    installed = re.findall(
        r"^(?!pip|setuptools)[\w-]+==[\w.]+", listed.replace("_", "-"), re.MULTILINE
    )
    assert set(installed) == {"credit-service==0.1.0", *pinned}
    (shell.directory / "call.py").write_text(f"""
import asyncio
from credit_service.client import CreditClient

async def main():
    async with CreditClient("{service.target}") as client:
        print(*[price.operation for price in (await client.list_prices()).prices])

asyncio.run(main())
""")
    said = await asyncio.to_thread(shell.run, "worker/bin/python -P call.py")
    assert said.split() == ["render", "stem_separation"]
