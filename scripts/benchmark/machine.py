"""Facts about this machine, and its use of processors and memory, from /proc (Linux, proc(5))."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import time
from importlib import metadata
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_FSYNCS = 50
_PROC = Path("/proc")
_IN_MEMORY = ("tmpfs", "ramfs")


def cpu_seconds(root: int) -> float:
    """Adds up the processor time of a process and of all its descendants, ended ones included.

    Args:
        root: process id.
    """
    times, parents = {}, {}
    for stat in _PROC.glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # the process has ended
        pid = int(stat.parent.name)
        parents[pid] = int(fields[1])
        times[pid] = sum(map(int, fields[11:15]))  # its own and of children it waited for

    def below_root(pid: int) -> bool:
        while pid not in {root, 0}:
            pid = parents.get(pid, 0)
        return pid == root

    return sum(ticks for pid, ticks in times.items() if below_root(pid)) / _TICKS


class Others:
    """Watches how much other programs on this machine use, which should be little."""

    def __init__(self) -> None:
        """Starts to watch."""
        self._all, self._ours = _all_seconds(), cpu_seconds(os.getpid())
        self._started = time.monotonic()

    def share(self) -> float:
        """Returns the part of all processors that was not ours since the beginning, 0 to 1."""
        spent = (_all_seconds() - self._all) - (cpu_seconds(os.getpid()) - self._ours)
        capacity = (time.monotonic() - self._started) * (os.cpu_count() or 1)
        return max(0.0, spent / capacity)


def _all_seconds() -> float:
    """Returns the busy time of all processors, the time taken by a hypervisor included."""
    user, nice, system, _idle, _wait, irq, soft_irq, steal, *_ = map(
        int, (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + soft_irq + steal) / _TICKS


def resident_mb(pid: int) -> float:
    """Returns the memory of a process that is in RAM, in units of 10^6 bytes."""
    status = (_PROC / str(pid) / "status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def facts(data: Path) -> dict[str, str]:
    """Returns the facts that the figures of this run depend on.

    Args:
        data: where the database keeps its files.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    libraries = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("grpcio", "protobuf", "asyncpg", "uvloop")
    )
    file_system = _file_system(data)
    durable = ": IN MEMORY, so no commit is durable" if file_system in _IN_MEMORY else ""
    return {
        "commit": _commit(),
        "processor": f"{len(os.sched_getaffinity(0))} x {_processor()}",
        "memory": f"{memory:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_version()}, {libraries}",
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "data on": f"{file_system}, a write and fsync takes {_fsync_us(data):,.0f} us{durable}",
    }


def _commit() -> str:
    ended = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],  # noqa: S607
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.stdout.strip() or "unknown"


def _processor() -> str:
    text = (_PROC / "cpuinfo").read_text()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _file_system(path: Path) -> str:
    path, best, kind = path.resolve(), Path(), "unknown"
    for line in (_PROC / "mounts").read_text().splitlines():
        _, place, found, *_ = line.split()
        mounted = Path(place)
        if path.is_relative_to(mounted) and len(mounted.parts) >= len(best.parts):
            best, kind = mounted, found
    return kind


def _fsync_us(directory: Path) -> float:
    """Returns the median time of an appended page that is made durable, in microseconds."""
    path = directory / "fsync"
    taken = []
    with path.open("wb", buffering=0) as file:
        for _ in range(_FSYNCS):
            started = time.perf_counter()
            file.write(b"\0" * 8192)
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - started)
    path.unlink()
    return statistics.median(taken) * 1e6
