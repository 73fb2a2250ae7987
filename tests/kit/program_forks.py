"""Programs started by forking a process that has already imported their modules.

Python takes a second of processor time to import the modules of one program, and the tests
start a thousand of them. A fork is a process like any other: it has its own session, environment,
files and end. Settings that the interpreter or a library reads as it starts have no effect on a
fork; such a program is started in the ordinary way, as `can_fork` decides. `python -m` itself is
tested with `credit-service --version` and the like.

This file run as a program is the root, which a test run starts once for all its workers. For each
module the root forks a template, which imports the module's command line and forks the programs.
"""

import contextlib
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

# By the module of `python -m`: the module that its template imports before it forks.
_IMPORTS = {
    "credit_service": "credit_service.cli",
    "credit_service.gateway": "credit_service.gateway.cli",
    "stripe_bridge": "stripe_bridge.cli",
    "fake_stripe": "fake_stripe.__main__",
}
_ROOT = "TEST_PROGRAM_FORKS"
_PATH = "TEST_PROGRAM_FORKS_PATH"  # PYTHONPATH as it was when the run started
# The interpreter and the libraries read variables with these prefixes when they are loaded.
_READ_AT_START = ("PYTHON", "GRPC_", "LD_", "LC_", "LANG", "TZ", "MALLOC_", "OPENSSL_", "COVERAGE_")
_MESSAGE_MAX = 1 << 18
_FILES_MAX = 1 << 12
_ADDRESS_MAX = 80  # of the 107 bytes that a socket's address may have, before a module's name
_STDIN, _STDOUT, _STDERR, _STATUS = range(4)


@contextmanager
def program_forks(directory: Path, *paths: Path) -> Iterator[None]:
    """Runs the root for the length of the block; processes started within it find the root.

    Without the sockets that it needs, programs are started in the ordinary way.

    Args:
        directory: where the sockets are made.
        paths: further places of modules.
    """
    address = directory / "forks"
    if sys.platform != "linux" or len(str(address)) > _ADDRESS_MAX:
        yield
        return
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-P", __file__, str(address)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # closing it ends the root
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    ) as root:
        assert root.stdout is not None
        assert root.stdout.readline(), "the root of the programs did not start"
        os.environ[_ROOT] = str(address)
        os.environ[_PATH] = os.environ.get("PYTHONPATH", "")
        try:
            yield
        finally:
            del os.environ[_ROOT], os.environ[_PATH]


def can_fork(module: str, environment: Mapping[str, str]) -> bool:
    """Whether a fork with this environment is as good as `python -m` of the module."""
    if _ROOT not in os.environ or module not in _IMPORTS:
        return False
    # The places where a template looks for modules; the fake Stripe's also looks in scripts/.
    if module != "fake_stripe" and environment.get("PYTHONPATH", "") != os.environ[_PATH]:
        return False
    names = {n for n in {*environment, *os.environ} if n.startswith(_READ_AT_START)}
    return not any(
        environment.get(n) != os.environ.get(n) or n.startswith("COVERAGE_")
        for n in names - {"PYTHONPATH"}
    )


class Fork:
    """A forked program, with the part of `subprocess.Popen` that tests use."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        stdout: int,
        stderr: int,
    ) -> None:
        self.returncode: int | None = None
        order = {
            "module": module,
            "arguments": list(arguments),
            "environment": dict(environment),
            "place": str(Path.cwd()),
        }
        self._status, status = os.pipe()
        try:
            with (
                Path(os.devnull).open("rb") as nothing,
                _connection(os.environ[_ROOT], module) as template,
            ):
                files = [nothing.fileno(), stdout, stderr, status]
                socket.send_fds(template, [json.dumps(order).encode()], files)
                self.pid = int(template.recv(_MESSAGE_MAX))
        finally:
            os.close(status)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            if self.returncode is None:  # another thread may have waited too
                said = os.read(self._status, 16)
                assert said or self.returncode is not None, "the template of the program is gone"
                self.returncode = int(said)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            # It may have ended meanwhile; the template reports that a little later.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._status)


def run_forked(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """Runs a forked program to its end; raises `subprocess.TimeoutExpired` as `run` does."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        files = {"stdout": stdout.fileno(), "stderr": stderr.fileno()}
        fork = Fork(module, arguments, environment, **files)
        try:
            code = fork.wait(seconds)
        finally:
            fork.kill()
        printed = []
        for file in (stdout, stderr):
            file.seek(0)
            printed.append(file.read().decode())
    return subprocess.CompletedProcess([module, *arguments], code, *printed)


@contextmanager
def _connection(address: str, module: str) -> Iterator[socket.socket]:
    """Connects to the template of a module, which the root makes when it is first asked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as root:
        root.connect(address)
        root.send(module.encode())
        root.recv(1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as template:
        template.connect(f"{address}-{module}")
        yield template


def _listener(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(64)
    return listener


def _be_root(address: str) -> tuple[str, socket.socket] | None:
    """Makes templates until the run ends; in a template, returns its module and socket."""
    listener = _listener(address)
    made = set()
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return None
        connection, _ = listener.accept()
        with connection:
            module = connection.recv(_MESSAGE_MAX).decode()
            if module not in made:
                made.add(module)
                templates = _listener(f"{address}-{module}")
                if os.fork() == 0:
                    listener.close()
                    return module, templates
                templates.close()
            connection.send(b".")


def _be_template(module: str, listener: socket.socket) -> dict[str, object] | None:
    """Forks programs until the run ends; in a program, returns its description."""
    before = dict(os.environ)
    importlib.import_module(_IMPORTS[module])
    sys.modules.pop(f"{module}.__main__", None)  # it is run, not only imported
    added = {name: value for name, value in os.environ.items() if name not in before}
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}  # the pipe that says how a program ended
    with selectors.DefaultSelector() as selector:
        for file in (listener, woken, sys.stdin):
            selector.register(file, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if sys.stdin in ready:
                return None
            if woken in ready:
                os.read(woken, 4096)
                _report_ends(running)
            if listener in ready:
                connection, _ = listener.accept()
                said, files, _, _ = socket.recv_fds(connection, _MESSAGE_MAX, 4)
                order = json.loads(said)
                order["environment"] = added | order["environment"]
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    return order | {"files": files}
                running[pid] = files[_STATUS]
                connection.send(str(pid).encode())
                connection.close()
                for file in files[:_STATUS]:
                    os.close(file)


def _report_ends(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        file = running.pop(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(file, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(file)


def _be_program(order: dict[str, object]) -> None:
    os.setsid()
    for number, file in enumerate(order["files"][:_STATUS]):
        os.dup2(file, number)
    os.closerange(_STATUS, _FILES_MAX)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["place"])
    tempfile.tempdir = None
    sys.path.insert(0, order["place"])
    sys.argv[1:] = order["arguments"]
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    template = _be_root(sys.argv[1])
    order = template and _be_template(*template)
    if order:
        del template
        _be_program(order)
