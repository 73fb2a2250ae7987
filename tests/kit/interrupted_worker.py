"""A blocking worker whose time limit, a signal, strikes later and later in its work.

interrupted_worker.py TARGET USER_ID...    prints "swept", and ends when it is sent a line
"""

import signal
import sys
from contextlib import suppress
from datetime import timedelta

from credit_service.client import BlockingCreditClient

TTL = timedelta(seconds=2)


class TimeLimit(Exception):
    """The exception that the signal raises."""


def strikes(*_):
    raise TimeLimit


def work(client, n, user_id):
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-6 + (n // 3) * 0.0002)
        with client.hold(user_id, amount=1, job=f"song-{n}", ttl=TTL) as held:
            if n % 3 == 0:
                held.capture()
            if n % 3 == 1:
                raise ValueError
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main():
    target, *user_ids = sys.argv[1:]
    signal.signal(signal.SIGALRM, strikes)
    with BlockingCreditClient(target, deadline_seconds=60) as client:
        for n in range(300):
            with suppress(TimeLimit, ValueError):
                work(client, n, user_ids[n % len(user_ids)])
        print("swept", flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
