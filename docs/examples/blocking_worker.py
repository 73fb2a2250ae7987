"""A blocking worker: splits stereo WAV files in a pool of threads, each under a hold.

python docs/examples/blocking_worker.py USER_ID song.wav another.wav
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from mid_side import SongError, split

from credit_service.client import BlockingCreditClient
from credit_service.errors import AlreadyPaid, CreditError


def work(client: BlockingCreditClient, user_id: str, song: Path) -> bool:
    """Pays for a song and splits it, or does neither; the song's path is the job."""
    # A hash, because a path may be longer than the 128 characters of a key.
    job = sha256(str(song.resolve()).encode()).hexdigest()
    # One write per line, because several threads print.
    try:
        with client.hold(user_id, "stem_separation", job=job) as held:
            split(song, song.with_suffix(".mid.wav"), song.with_suffix(".side.wav"))
            paid = held.capture()
    except AlreadyPaid:
        print(f"{song}: done before\n", end="")
    except (CreditError, SongError) as error:
        print(f"{song}: not done: {error}", file=sys.stderr)
        return False
    else:
        print(f"{song}: paid {paid.transaction.amount}, {paid.credit.balance} left\n", end="")
    return True


def main() -> int:
    """Runs the jobs; exit code 1 if one of them was not done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("user_id")
    parser.add_argument("songs", type=Path, nargs="+")
    parser.add_argument("--target", default="127.0.0.1:50051")
    parser.add_argument("--token")
    arguments = parser.parse_args()
    with (
        BlockingCreditClient(arguments.target, token=arguments.token) as client,
        ThreadPoolExecutor() as pool,
    ):
        done = list(pool.map(lambda song: work(client, arguments.user_id, song), arguments.songs))
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
