"""A worker that takes jobs from its standard input until it is killed: one line, one job."""

import random
import sys
import time
from datetime import timedelta

from credit_service.client import BlockingCreditClient
from credit_service.errors import AlreadyPaid, CreditError


def main() -> None:
    """Prints the result of each job."""
    target, ttl = sys.argv[1], timedelta(seconds=float(sys.argv[2]))
    with BlockingCreditClient(target) as client:
        print("ready", flush=True)
        for line in sys.stdin:
            user_id, job, kind = line.split()
            try:
                with client.hold(user_id, amount=7, job=job, ttl=ttl) as held:
                    print("working", job, flush=True)
                    time.sleep(random.uniform(0, 0.05))
                    if kind == "fails":
                        raise ValueError(job)
                    if kind == "part":
                        held.capture(3)
            except ValueError:
                print("failed", job, flush=True)
            except AlreadyPaid:
                print("paid-before", job, flush=True)
            except CreditError as error:
                print(error.reason, job, flush=True)
            else:
                print("paid", job, flush=True)


if __name__ == "__main__":
    main()
