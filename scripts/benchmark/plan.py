"""The plan of a client process, and its report afterwards; each is a line of JSON."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A load for one client process.

    Attributes:
        target: host:port of the server.
        call: what to call, a name of `calls.CALLS` or `client_calls.NAMES`, `watch` or `flood`.
        first_user: number of the first user to call for.
        users: how many users to spread over, at random.
        in_flight: calls that wait for their answers at the same time; unused with a rate.
        seconds: how long calls are begun.
        start_at: when to begin, by the clock of `time.monotonic`, which all processes share.
        rate: calls a second that are begun regardless of the earlier ones; None: a call begins when
            one of those in flight ends.
        connections: to the server.
    """

    target: str
    call: str
    first_user: int
    users: int
    in_flight: int
    seconds: float
    start_at: float
    rate: float | None = None
    connections: int = 1


@dataclass(slots=True)
class Outcome:
    """The outcome of a plan.

    Attributes:
        begun: calls that were made.
        answered: calls answered with OK within the seconds of the plan.
        failed: calls not answered with OK, by status code and reason.
        waited_us: microseconds of every answered call; with a rate from when the call was due,
            not from when it was sent, so that a stall counts for all calls it held up.
        cpu_seconds: processor time that the client process used.
        seconds: how long the client process took.
    """

    begun: int = 0
    answered: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    waited_us: list[int] = field(default_factory=list)
    cpu_seconds: float = 0
    seconds: float = 0
