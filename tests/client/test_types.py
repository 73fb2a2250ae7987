"""What editors and type checkers know of the clients, and that the two clients are one."""

import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import blocking_calls
import pytest
from kit.paths import ROOT

from credit_service import blocking
from credit_service.client import BlockingCreditClient, CreditClient

TYPED_WORKER = Path(__file__).with_name("typed_worker.py")

# Only the blocking client has these: it runs coroutines and iterates over generators.
OWN = {"run", "iterate"}

# Only the asynchronous client has these: the generated calls, and the two ways to make one.
ASYNC_ONLY = {"stub", "read", "write"}


def public(client: type) -> dict[str, object]:
    return {
        name: member
        for name, member in inspect.getmembers(client)
        if not name.startswith("_") or name == "__init__"
    }


def as_blocking(annotation: str) -> str:
    return annotation.replace("AsyncGenerator", "Generator").replace("HeldWork", "BlockingHeldWork")


SHARED = sorted(public(CreditClient).keys() - ASYNC_ONLY)


def test_the_blocking_client_has_every_method_of_the_other_and_no_other():
    assert public(BlockingCreditClient).keys() - OWN == set(SHARED)
    assert blocking.BlockingCreditClient is BlockingCreditClient


@pytest.mark.parametrize("name", SHARED)
def test_a_blocking_method_takes_and_returns_the_same(name):
    theirs, ours = (
        inspect.signature(getattr(client, name)) for client in (CreditClient, BlockingCreditClient)
    )
    assert ours.parameters == theirs.parameters
    assert ours.return_annotation == as_blocking(theirs.return_annotation)
    assert not inspect.iscoroutinefunction(getattr(BlockingCreditClient, name))


@pytest.mark.parametrize("name", sorted(set(SHARED) - {"__init__", "close", "hold"}))
def test_a_blocking_method_says_the_same(name):
    theirs, ours = (inspect.getdoc(getattr(c, name)) for c in (CreditClient, BlockingCreditClient))
    assert ours == theirs


def test_a_blocking_hold_describes_its_arguments_as_the_other_does():
    theirs, ours = (inspect.getdoc(c.hold) for c in (CreditClient, BlockingCreditClient))
    assert ours.partition("Args:")[2] == theirs.partition("Args:")[2]


def test_the_blocking_calls_are_what_their_script_writes():
    for path, text in blocking_calls.generated().items():
        assert path.read_text() == text, f"run scripts/{Path(blocking_calls.__file__).name}"


def test_mypy_knows_every_method_and_finds_every_mistake():
    """Strict mypy once passed `client.spend_credtis()`."""
    mypy = (sys.executable, "-m", "mypy", "--show-error-codes", "--no-pretty", str(TYPED_WORKER))
    ended = subprocess.run(mypy, cwd=ROOT, capture_output=True, text=True, check=False)
    found = Counter(
        (int(line), code)
        for line, code in re.findall(
            r"typed_worker\.py:(\d+): error: .* \[([\w-]+)\]$", ended.stdout, re.MULTILINE
        )
    )
    expected = Counter(
        (number, code)
        for number, line in enumerate(TYPED_WORKER.read_text().splitlines(), 1)
        for code in re.findall(r"# error: ([\w-]+)$", line)
    )
    assert found.keys() == expected.keys(), ended.stdout + ended.stderr
