"""The README: every snippet runs as printed."""

import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import pytest
from kit.documents import README, Shell, section, snippets
from kit.paths import ROOT
from kit.programs import process

from credit_service.client import CreditClient

USER_ID = "3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b"
OPERATOR, WORKER = "An operator, with grpcurl", "A worker, in Python"


@pytest.fixture(scope="module")
def port():
    """The port of a service started like scripts/serve, with its own database."""
    directory = Path(tempfile.mkdtemp(prefix="readme-"))
    directory.chmod(0o755)
    with process("serve", "--migrate", CREDIT_DATA_DIR=str(directory / "data")) as service:
        yield service.wait_until_listening()
    shutil.rmtree(directory)


@pytest.fixture
def shell(port, tmp_path):
    return Shell(tmp_path, {"127.0.0.1:50051": f"127.0.0.1:{port}"})


@pytest.fixture
async def client(port):
    async with CreditClient(f"127.0.0.1:{port}") as client:
        yield client


@pytest.fixture
async def credited(client):
    """Does what the operator's first command does, for machines without grpcurl."""
    printed = re.search(r"-d '(\{.*?\})'", section(README, OPERATOR), re.DOTALL)
    request = json.loads(printed.group(1))
    assert request.pop("user_id") == USER_ID
    await client.grant_credits(USER_ID, **request)


async def balance(client):
    return (await client.get_user_credit(USER_ID)).balance


def test_the_operators_commands_run_as_printed(shell, credited):
    if shutil.which("grpcurl", path=shell.environment["PATH"]) is None:
        pytest.skip("grpcurl is not installed")
    give, look, limit, _buf = snippets(README, OPERATOR, "sh")
    assert '"replayed": true' in shell.run(give)
    said = shell.run(look)
    assert '"balance"' in said
    assert "goodwill, ticket 7" in said
    assert "rpc SpendCredits" in said
    assert '"per_day": "1000"' in shell.run(limit).replace("perDay", "per_day")


def test_the_command_for_machines_without_grpcurl_runs_as_printed(shell, credited):
    *_, buf = snippets(README, OPERATOR, "sh")
    shell.directory = ROOT
    assert '"replayed": true' in shell.run(buf).replace('"replayed":true', '"replayed": true')


async def test_the_worker_does_its_job_and_pays_once_however_often_it_runs(shell, client, credited):
    (worker,) = snippets(README, WORKER, "python")
    before = await balance(client)
    assert shell.python(worker).splitlines() == [
        "job-1: separating",
        f"job-1: paid 10 credits, {before - 10} are left",
    ]
    assert shell.python(worker) == "job-1: done and paid before\n"
    assert await balance(client) == before - 10


def printed_worker(separate_stems):
    """The `run` function of the printed worker, with other work to do."""
    (worker,) = snippets(README, WORKER, "python")
    printed = {}
    exec(worker.replace("asyncio.run(main())", ""), printed)
    printed["separate_stems"] = separate_stems
    return printed["run"]


async def test_the_worker_releases_the_credits_when_the_work_fails(client, credited):
    seen = []

    async def fail(job):
        seen.append(await client.get_user_credit(USER_ID))
        raise RuntimeError(job)

    before = await client.get_user_credit(USER_ID)
    with pytest.raises(RuntimeError, match="job-3"):
        await printed_worker(fail)(client, USER_ID, "job-3")
    assert [credit.available for credit in seen] == [before.available - 10]
    after = await client.get_user_credit(USER_ID)
    assert (after.balance, after.held) == (before.balance, before.held)


async def test_the_worker_does_no_work_without_the_credits(client, capsys):
    async def work(_job):
        raise AssertionError("worked unpaid")

    poor = "3f2b8c1e-9d4a-4f6b-8a57-000000000000"
    await client.grant_credits(poor, 9, reason="too few", idempotency_key="poor")
    await printed_worker(work)(client, poor, "job-4")
    assert capsys.readouterr().out == "job-4: 1 more credits are needed\n"
    assert (await client.get_user_credit(poor)).balance == 9


def write_song(path):
    """Writes a stereo WAV file in which every left sample is 1000 and every right one 400."""
    with wave.open(str(path), "wb") as song:
        song.setnchannels(2)
        song.setsampwidth(2)
        song.setframerate(8000)
        song.writeframes(struct.pack("<hh", 1000, 400) * 8000)


def samples(path):
    with wave.open(str(path), "rb") as part:
        assert (part.getnchannels(), part.getnframes()) == (1, 8000)
        return set(struct.unpack("<8000h", part.readframes(8000)))


async def test_the_example_workers_each_split_a_song_and_pay_for_it_once(
    shell, port, client, credited, tmp_path
):
    (examples,) = snippets(README, WORKER, "sh")
    song = tmp_path / "song.wav"
    write_song(song)
    shell.directory = ROOT
    shell.swaps["song.wav"] = f"{song} --target 127.0.0.1:{port}"
    before = await balance(client)
    said = shell.run(examples)
    assert said.splitlines() == [
        f"{song}: paid 10, {before - 10} left",
        f"{song}: paid 10, {before - 20} left",
    ]
    assert samples(tmp_path / "song.mid.wav") == {700}
    assert samples(tmp_path / "song.side.wav") == {300}
    assert shell.run(examples).splitlines() == [
        "job-2 was done before",
        f"{song}: done before",
    ]
    assert await balance(client) == before - 20


async def test_the_gateway_in_python_shows_balance_history_and_quote(shell, client, credited):
    (gateway,) = snippets(README, "A gateway, in Python", "python")
    said = shell.python(gateway)
    assert f"balance: {await balance(client)} credits" in said
    assert "+100  goodwill, ticket 7" in said
    assert "it would cost 25, affordable: True" in said


@pytest.mark.long
async def test_the_gateway_in_typescript_shows_the_same(shell, client, credited):
    if shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    (gateway,) = snippets(README, "A gateway, in TypeScript", "typescript")
    ((install, run),) = (
        text.splitlines() for text in snippets(README, "A gateway, in TypeScript", "sh")
    )
    shutil.copytree(ROOT / "protos", shell.directory / "protos")
    (shell.directory / "gateway.mts").write_text(shell.swapped(gateway))
    try:
        shell.run(install)
    except (AssertionError, subprocess.TimeoutExpired) as failure:
        if re.search(r"ENOTFOUND|ECONNREFUSED|EAI_AGAIN|ETIMEDOUT|TimeoutExpired", repr(failure)):
            pytest.skip("the npm registry cannot be reached")
        raise
    said = shell.run(run)
    assert f"balance: {await balance(client)} credits" in said
    assert "TRANSACTION_TYPE_GRANT 100 goodwill, ticket 7" in said
    assert "it would cost 25, affordable: true" in said


def test_the_demo_plays_its_story_on_another_port(shell, port):
    said = shell.run(f"{sys.executable} {ROOT}/scripts/demo.py --target 127.0.0.1:{port}")
    assert "buys 25 credits" in said
    assert "balance: 25 credits, 10 of them held" in said
    assert "nothing left to do" in said
    assert "refused: 20 credits are needed and 15 are available" in said
    history = re.findall(r"^   (\d)  (\w+) +([+-]\d+) .* held +(\d+)", said, re.MULTILINE)
    assert history == [
        ("4", "refund", "+10", "0"),
        ("3", "capture", "-10", "0"),
        ("2", "hold", "+0", "10"),
        ("1", "purchase", "+25", "0"),
    ]
