"""What a worker installs to have the client: three packages and ours."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from kit.harness import ROOT


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
    told = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.split() == [
        "credit_service",
        "credit_service.client",
        "credit_service.client.accounts",
        "credit_service.client.blocking",
        "credit_service.client.connection",
        "credit_service.client.credits",
        "credit_service.client.held_work",
        "credit_service.client.holds",
        "credit_service.errors",
        "credit_service.status",
        "credit_service.v1",
        "credit_service.v1.credit_service_pb2",
        "credit_service.v1.credit_service_pb2_grpc",
    ]


def sources() -> list[str]:
    listing = ("git", "ls-files", "credit_service", "protos", "pyproject.toml", "README.md")
    told = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True)
    return told.stdout.splitlines()


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_a_worker_installs_three_packages_and_calls(service, tmp_path):
    source, worker = tmp_path / "source", tmp_path / "worker"
    for name in sources():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    pinned = re.findall(
        r"^(?:grpcio|protobuf|googleapis-common-protos)==[\w.]+",
        (ROOT / "requirements.lock").read_text(),
        re.MULTILINE,
    )
    assert len(pinned) == 3
    tools = Path(sys.executable).parent

    async def run(*command, **options):
        told = await asyncio.to_thread(
            subprocess.run,
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            cwd=tmp_path,
            **options,
        )
        assert told.returncode == 0, told.stdout + told.stderr
        return told.stdout

    built = {"env": os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}}
    wheel = ("pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source)
    await run(sys.executable, "-m", *wheel, **built)
    (built_wheel,) = tmp_path.glob("*.whl")
    await run(sys.executable, "-m", "venv", worker)
    await run(worker / "bin/pip", "install", *pinned)
    await run(worker / "bin/pip", "install", "--no-deps", built_wheel)
    await run(worker / "bin/pip", "check")
    program = f"""
        import asyncio
        from credit_service.client import CreditClient

        async def main():
            async with CreditClient("{service.target}") as client:
                print(*[price.operation for price in (await client.list_prices()).prices])

        asyncio.run(main())
    """
    told = await run(worker / "bin/python", "-I", "-c", textwrap.dedent(program))
    assert told.split() == ["render", "stem_separation"]
