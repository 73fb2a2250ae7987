"""An asyncio worker: splits a stereo WAV file under a hold of one stem separation.

python docs/examples/async_worker.py USER_ID JOB song.wav
"""

import argparse
import asyncio
import sys
from pathlib import Path

from mid_side import SongError, split

from credit_service.client import CreditClient
from credit_service.errors import AlreadyPaid, CreditError, InsufficientCredits


async def work(client: CreditClient, user_id: str, job: str, song: Path) -> None:
    """Pays for the job and does it, or does neither."""
    async with client.hold(user_id, "stem_separation", job=job) as held:
        # A thread of its own, so that the hold is extended while the work runs.
        await asyncio.to_thread(
            split, song, song.with_suffix(".mid.wav"), song.with_suffix(".side.wav")
        )
    assert held.captured is not None
    print(f"{song}: paid {held.captured.transaction.amount}, {held.captured.credit.balance} left")


async def main() -> int:
    """Runs one job; exit code 1 if it was not done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("user_id")
    parser.add_argument("job")
    parser.add_argument("song", type=Path)
    parser.add_argument("--target", default="127.0.0.1:50051")
    parser.add_argument("--token")
    arguments = parser.parse_args()
    async with CreditClient(arguments.target, token=arguments.token) as client:
        try:
            await work(client, arguments.user_id, arguments.job, arguments.song)
        except AlreadyPaid:
            print(f"{arguments.job} was done before")
        except InsufficientCredits as refusal:
            print(f"not done: {refusal.shortfall} credits are missing", file=sys.stderr)
            return 1
        except (CreditError, SongError) as error:
            print(f"not done: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
