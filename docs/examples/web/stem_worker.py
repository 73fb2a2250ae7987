"""A worker process of the example app: splits one song under a hold, and reports progress.

python docs/examples/web/stem_worker.py USER_ID JOB SONG FOLDER

It prints a line of JSON for each piece it has written, `{"written": bytes, "total": bytes}`. If it
is killed, it spends no credits: the hold ends by itself, or the app releases it at once.
"""

import argparse
import asyncio
import json
import sys
from datetime import timedelta
from pathlib import Path

from credit_service.client import CreditClient
from credit_service.errors import AlreadyPaid, CreditError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mid_side import split


def tell(written: int, total: int) -> None:
    """Prints how many bytes of the stems are written."""
    print(json.dumps({"written": written, "total": total}), flush=True)


async def work(client: CreditClient, arguments: argparse.Namespace) -> None:
    """Continues the hold that the app made for the job, splits the song, and captures the hold."""
    mid, side = (arguments.folder / f"{arguments.job}.{stem}.wav" for stem in ("mid", "side"))
    ttl = timedelta(seconds=arguments.ttl)
    async with client.hold(arguments.user_id, "stem_separation", job=arguments.job, ttl=ttl):
        await asyncio.to_thread(split, arguments.song, mid, side, tell)


async def main() -> int:
    """Runs one job; exit code 0: the stems are written and paid for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("user_id")
    parser.add_argument("job")
    parser.add_argument("song", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="127.0.0.1:50051")
    parser.add_argument("--ttl", type=float, default=30.0, help="seconds")
    arguments = parser.parse_args()
    async with CreditClient(arguments.target) as client:
        try:
            await work(client, arguments)
        except AlreadyPaid:
            print(f"{arguments.job} was done before", file=sys.stderr)
        except CreditError as error:
            print(f"not done: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
