"""Where a client runs and where it cannot: event loops, forks, green threads."""

import asyncio
import importlib.util
import subprocess
import sys
import textwrap
import threading

import pytest
from kit.paths import ROOT
from kit.waiting import patience

from credit_service.client import CreditClient

pytestmark = pytest.mark.shared


async def run(program, *arguments):
    """Runs a program in a process of its own, which must end; returns what it printed."""
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(30),
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


# Event loops. A channel of gRPC belongs to the loop it was made in.


async def test_a_client_is_made_before_any_loop_runs_and_used_in_one_after_another(service):
    said = await run(
        """
        import asyncio, sys
        from credit_service.client import CreditClient

        client = CreditClient(sys.argv[1])

        async def prices():
            both = await asyncio.gather(client.list_prices(), client.list_prices())
            print(len(both[0].prices))

        for _ in range(3):
            asyncio.run(prices())
        asyncio.run(client.close())
        """,
        service.target,
    )
    assert said.split() == ["2", "2", "2"]


async def test_a_client_of_another_loop_raises_an_error_that_says_what_to_do(service):
    async with CreditClient(service.target) as client:
        await client.list_prices()
        failures = []

        def in_another_loop():
            with pytest.raises(RuntimeError, match="make one for each loop") as failure:
                asyncio.run(client.list_prices())
            failures.append(failure.value)

        thread = threading.Thread(target=in_another_loop)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert len(failures) == 1
        assert len((await client.list_prices()).prices) == 2


async def test_a_closed_client_says_so(service):
    client = CreditClient(service.target)
    await client.list_prices()
    for _ in range(2):
        await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.list_prices()
    unused = CreditClient(service.target)
    await unused.close()
    with pytest.raises(RuntimeError, match="closed"):
        await unused.list_prices()


async def test_a_closed_blocking_client_says_so(service):
    said = await run(
        """
        import sys
        from credit_service.client import BlockingCreditClient

        client = BlockingCreditClient(sys.argv[1])
        work = client.hold("3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b", amount=1, job="song")
        watching = client.watch_user_credit("3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b")
        for _ in range(2):
            client.close()
        for call in (client.list_prices, work.__enter__, lambda: next(watching)):
            try:
                call()
            except RuntimeError as error:
                print(error)
        """,
        service.target,
    )
    assert said.count("this client is closed") == 3


# Forks. gRPC would hang there, or crash.


async def test_a_blocking_client_is_refused_in_a_process_forked_after_it(service):
    said = await run(
        """
        import os, sys
        from credit_service.client import BlockingCreditClient

        def tries(call):
            try: call()
            except RuntimeError as error: print(error, flush=True)

        client = BlockingCreditClient(sys.argv[1])
        client.list_prices()
        child = os.fork()
        if child == 0:
            tries(client.list_prices)
            tries(lambda: BlockingCreditClient(sys.argv[1]))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        client.list_prices()
        client.close()
        """,
        service.target,
    )
    assert said.count("forked") == 2


async def test_a_client_is_refused_in_a_process_forked_after_its_first_call(service):
    said = await run(
        """
        import asyncio, os, sys
        from credit_service.client import CreditClient

        async def prices(client):
            await client.list_prices()

        client, unused = CreditClient(sys.argv[1]), CreditClient(sys.argv[1])
        asyncio.run(prices(client))
        child = os.fork()
        if child == 0:
            for each in (client, unused, CreditClient(sys.argv[1])):
                try: asyncio.run(prices(each))
                except RuntimeError as error: print(error, flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        asyncio.run(prices(client))
        """,
        service.target,
    )
    assert said.count("forked") == 3


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
async def test_a_fork_beside_a_client_has_no_threads_of_grpc(service):
    """Between fork and exec they crash the programs that an application on uvloop starts."""
    said = await run(
        """
        import asyncio, os, sys
        from credit_service.client import CreditClient

        async def main():
            async with CreditClient(sys.argv[1]) as client:
                await client.list_prices()
                child = os.fork()
                if child == 0:
                    os._exit(len(os.listdir("/proc/self/task")))
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

        asyncio.run(main())
        """,
        service.target,
    )
    assert said.split() == ["1"]


COLLECTING = """
import asyncio, gc, os

def leave():
    if gc.isenabled():
        os._exit(7)

os.register_at_fork(after_in_child=leave)

import uvloop
import credit_service

async def main():
    program = await asyncio.create_subprocess_exec("true")
    return await program.wait()

print(uvloop.run(main()), gc.isenabled())
"""


async def test_no_garbage_is_collected_between_fork_and_exec():
    """A channel in it would hang the child, and on uvloop its parent."""
    assert await run(COLLECTING) == "0 True\n"


async def test_a_client_that_was_not_used_yet_works_after_a_fork(service):
    """As with a server that loads an application before it forks its workers."""
    said = await run(
        """
        import asyncio, os, sys
        from credit_service.client import CreditClient

        client = CreditClient(sys.argv[1])

        async def prices():
            print(len((await client.list_prices()).prices), flush=True)

        child = os.fork()
        asyncio.run(prices())
        if child:
            assert os.waitpid(child, 0)[1] == 0
        """,
        service.target,
    )
    assert said.split() == ["2", "2"]


# Green threads. gRPC waits in threads of the system, and a patched process starts none.


def require(library):
    """Skips a test where the library has no wheel; on Linux requirements.lock names both."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed, because it has no wheel for this machine")


PATCHES = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "gevent without its threads": "from gevent import monkey; monkey.patch_all(thread=False)",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
    "eventlet without its threads": "import eventlet; eventlet.monkey_patch(thread=False)",
}

USES = {
    "blocking": """
        from credit_service.client import BlockingCreditClient
        BlockingCreditClient(sys.argv[1]).list_prices()
    """,
    "asyncio": """
        import asyncio
        from credit_service.client import CreditClient

        async def prices():
            async with CreditClient(sys.argv[1]) as client:
                await client.list_prices()

        asyncio.run(prices())
    """,
}


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("use", USES)
async def test_under_green_threads_a_client_says_at_once_that_it_would_hang(service, patch, use):
    library = patch.split(maxsplit=1)[0]
    require(library)
    said = await run(
        f"""
        import sys
        import warnings
        warnings.simplefilter("ignore")
        {PATCHES[patch]}
        try:
            exec({textwrap.dedent(USES[use])!r}, {{"sys": sys}})
        except RuntimeError as error:
            print(error, flush=True)
        """,
        service.target,
    )
    assert f"{library} has replaced the threads of this process" in said
    assert "Celery" in said


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
async def test_green_threads_that_are_only_installed_do_no_harm(service, library):
    require(library)
    said = await run(
        f"""
        import sys
        import warnings
        warnings.simplefilter("ignore")
        import {library}
        from credit_service.client import BlockingCreditClient

        with BlockingCreditClient(sys.argv[1]) as client:
            print(len(client.list_prices().prices))
        """,
        service.target,
    )
    assert said.split() == ["2"]
