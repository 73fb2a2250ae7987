"""The example workers of docs/examples really split a song, and pay for it once."""

import array
import asyncio
import os
import subprocess
import sys
import wave

import pytest
from kit.paths import ROOT
from kit.programs import process

from credit_service.client import CreditClient

EXAMPLES = ROOT / "docs" / "examples"
LEFT = [0, 1000, -1000, 32767, -32768, 32767, 3, -3]
RIGHT = [0, 500, 500, 32767, -32768, -32768, 0, 0]


def song(path, channels=2):
    """Writes a short file, stereo by default."""
    samples = array.array("h", [value for pair in zip(LEFT, RIGHT, strict=True) for value in pair])
    if sys.byteorder == "big":
        samples.byteswap()
    with wave.open(str(path), "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(44_100)
        writer.writeframes(samples.tobytes())
    return path


def samples_of(path):
    with wave.open(str(path), "rb") as reader:
        assert (reader.getnchannels(), reader.getsampwidth(), reader.getframerate()) == (
            1,
            2,
            44_100,
        )
        samples = array.array("h", reader.readframes(reader.getnframes()))
    if sys.byteorder == "big":
        samples.byteswap()
    return list(samples)


def is_split(path):
    mid = [(left + right) // 2 for left, right in zip(LEFT, RIGHT, strict=True)]
    side = [(left - right) // 2 for left, right in zip(LEFT, RIGHT, strict=True)]
    assert samples_of(path.with_suffix(".mid.wav")) == mid
    assert samples_of(path.with_suffix(".side.wav")) == side
    return True


def made(path):
    """The files beside the song that a worker wrote."""
    return sorted(found.name for found in path.parent.glob(f"{path.stem}.*.wav"))


async def run(name, *arguments):
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout.splitlines(), ended.stderr.splitlines()


@pytest.fixture
async def target(database):
    with process("serve", CREDIT_DATABASE_URL=database.service_url) as server:
        yield f"127.0.0.1:{await asyncio.to_thread(server.wait_until_listening)}"


async def test_the_asyncio_worker_pays_for_a_song_and_splits_it(database, target, tmp_path):
    user_id = await database.user(25)
    path = song(tmp_path / "song.wav")
    arguments = (user_id, "job-1", path, "--target", target)
    assert await run("async_worker.py", *arguments) == (0, [f"{path}: paid 10, 15 left"], [])
    assert is_split(path)
    again = await run("async_worker.py", *arguments)
    assert again == (0, ["job-1 was done before"], [])
    async with CreditClient(target) as client:
        credit = await client.get_user_credit(user_id)
    assert (credit.balance, credit.held) == (15, 0)
    assert not await database.faults()


async def test_the_blocking_worker_pays_for_each_of_several_songs(database, target, tmp_path):
    user_id = await database.user(35)
    paths = [song(tmp_path / f"song-{n}.wav") for n in range(3)]
    code, lines, complaints = await run("blocking_worker.py", user_id, *paths, "--target", target)
    assert (code, complaints) == (0, [])
    assert sorted(line.split(":")[0] for line in lines) == [str(path) for path in paths]
    assert all(": paid 10, " in line for line in lines)
    assert all(is_split(path) for path in paths)
    code, lines, _ = await run("blocking_worker.py", user_id, *paths, "--target", target)
    assert code == 0
    assert sorted(lines) == [f"{path}: done before" for path in paths]
    async with CreditClient(target) as client:
        credit = await client.get_user_credit(user_id)
    assert (credit.balance, credit.held) == (5, 0)
    assert not await database.faults()


async def test_without_credits_no_work_is_done(database, target, tmp_path):
    user_id = await database.user(7)
    path = song(tmp_path / "song.wav")
    code, lines, complaints = await run(
        "async_worker.py", user_id, "job-1", path, "--target", target
    )
    assert (code, lines) == (1, [])
    assert complaints == ["not done: 3 credits are missing"]
    code, lines, complaints = await run("blocking_worker.py", user_id, path, "--target", target)
    assert (code, lines, len(complaints)) == (1, [], 1)
    assert "3 more must be bought" in complaints[0]
    assert made(path) == []
    assert not await database.faults()


NO_SONGS = {
    "no such file": (lambda _: None, "No such file or directory"),
    "an empty file": (lambda path: path.touch(), "is not a WAV file"),
    "a text": (lambda path: path.write_bytes(b"this is not a song"), "is not a WAV file"),
    "a mono file": (lambda path: song(path, channels=1), "is not a 16-bit stereo file"),
}


@pytest.mark.parametrize("worker", ["async_worker.py", "blocking_worker.py"])
@pytest.mark.parametrize("case", NO_SONGS)
async def test_a_file_that_cannot_be_split_costs_nothing(database, target, tmp_path, worker, case):
    user_id = await database.user(25)
    path = tmp_path / "song.wav"
    write, problem = NO_SONGS[case]
    write(path)
    job = ("job-1",) if worker == "async_worker.py" else ()
    code, lines, complaints = await run(worker, user_id, *job, path, "--target", target)
    assert (code, lines, len(complaints)) == (1, [], 1)
    assert problem in complaints[0]
    async with CreditClient(target) as client:
        credit = await client.get_user_credit(user_id)
        assert (credit.balance, credit.held) == (25, 0)
    song(path)
    code, _, _ = await run(worker, user_id, *job, path, "--target", target)
    assert code == 0
    assert is_split(path)
    assert not await database.faults()


async def test_a_user_is_welcomed_once_however_often_the_example_runs(database, target):
    user_id = await database.user(0)
    for _ in range(2):
        code, lines, complaints = await run("free_credits.py", user_id, "--target", target)
        assert (code, complaints) == (0, [])
        assert lines[0] == "50 credits"
        assert sorted(line.split(" expire on ")[0] for line in lines[1:]) == ["20", "30"]
    code, lines, complaints = await run("free_credits.py", "nobody", "--target", target)
    assert (code, lines, len(complaints)) == (1, [], 1)
    assert not await database.faults()
