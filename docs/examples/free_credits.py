"""Welcomes a user: a gift of 30 credits for a month, and 20 free credits in every month.

python docs/examples/free_credits.py USER_ID

It may run again for the same user: the gift has a key, and the allowance is an absolute value.
"""

import argparse
import sys
from datetime import timedelta

from credit_service.client import BlockingCreditClient
from credit_service.errors import CreditError
from credit_service.v1 import credit_service_pb2 as pb

GIFT = 30
MONTHLY = pb.Allowance(amount=20, period=pb.ALLOWANCE_PERIOD_MONTH, carry_over=1)


def welcome(client: BlockingCreditClient, user_id: str) -> None:
    """Gives the user the free credits, and prints when they lapse."""
    client.grant_credits(
        user_id,
        GIFT,
        reason="welcome",
        valid_for=timedelta(days=30),
        idempotency_key=f"welcome:{user_id}",
    )
    client.set_account_policy(user_id, allowance=MONTHLY)
    credit = client.get_user_credit(user_id)
    print(f"{credit.available} credits")
    for part in credit.expiring:
        print(f"{part.amount} expire on {part.expire_time.ToDatetime():%d %B %Y}")


def main() -> int:
    """Welcomes one user; exit code 1 if that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("user_id")
    parser.add_argument("--target", default="127.0.0.1:50051")
    parser.add_argument("--token")
    arguments = parser.parse_args()
    with BlockingCreditClient(arguments.target, token=arguments.token) as client:
        try:
            welcome(client, arguments.user_id)
        except CreditError as error:
            print(f"not done: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
