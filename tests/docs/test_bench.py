"""The benchmark measures, reports, verifies the ledger, and leaves nothing behind."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest
from benchmark.book import fill
from benchmark.calls import Users
from benchmark.client_calls import coalesced
from benchmark.flooding import flood
from benchmark.floods import goodput
from benchmark.lines import Line, at_most, below, compared
from benchmark.load import Generator
from benchmark.measuring import Sample, quantile_ms
from benchmark.model import Deployment, Measured, costs
from benchmark.numbering import user_id as user_id_of
from benchmark.plan import Outcome, Plan
from benchmark.report import Report
from benchmark.testbed import Extent
from kit.paths import ROOT
from kit.services import running, server_settings
from kit.waiting import eventually, patience
from prometheus_client import REGISTRY

QUICK = ("--turns", "1", "--seconds", "0.2", "--users", "50")


class Bench:
    """A run of the benchmark that keeps all its files in one directory."""

    def __init__(self, directory, arguments):
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmark", *QUICK, *arguments],
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT}/scripts:{ROOT}",
                "TMPDIR": str(directory),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.progress = []
        self._measures = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.progress.append(line)
            if "warming up" in line:
                self._measures.set()
        self._measures.set()

    def wait_until_it_measures(self):
        assert self._measures.wait(patience(60))
        assert self.process.poll() is None, "".join(self.progress)

    def end(self):
        """Returns the exit code and the table."""
        table = self.process.stdout.read()
        code = self.process.wait(patience(60))
        self._reader.join(patience(10))
        return code, table

    def left_over(self):
        """Files in the directory, and processes that use them."""
        found = [path.name for path in self.directory.iterdir()]
        for process in Path("/proc").iterdir():
            if not process.name.isdecimal():
                continue
            for name in ("cmdline", "environ"):
                # The process may have just ended, or belong to another user.
                with contextlib.suppress(OSError):
                    if os.fsencode(self.directory) in (process / name).read_bytes():
                        found.append(f"{name} of {process.name}")
        return found

    def owner_url(self):
        (lock,) = self.directory.glob("credit-bench-*/data/lock")
        sockets = lock.read_text().splitlines()[1]
        return f"postgresql://postgres@/credit?host={quote(sockets)}"

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            self.process.wait(patience(60))
        self._reader.join(patience(10))
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def bench():
    # Not in pytest's own directory: if root runs this, PostgreSQL's user cannot reach it.
    directory = Path(tempfile.mkdtemp(prefix="bench-test-", dir="/tmp"))
    directory.chmod(0o755)
    runs = []

    def start(*arguments):
        runs.append(Bench(directory, arguments))
        return runs[-1]

    try:
        yield start
    finally:
        for run in runs:
            run.close()
        shutil.rmtree(directory)


def cells(table):
    """The lines of the table, as columns."""
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|")
    ]
    return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.mark.long
def test_a_short_run_prints_each_row_with_its_target_and_writes_the_same_to_json(bench, tmp_path):
    run = bench("--only", "hot", "--only", "latency", "--json", str(tmp_path / "found.json"))
    code, table = run.end()
    assert code == 0, "".join(run.progress)
    found = json.loads((tmp_path / "found.json").read_text())
    printed = cells(table)
    assert [(line["measured"], line["verdict"]) for line in printed] == [
        (line["measured"], line["verdict"]) for line in found["rows"]
    ]
    assert [line["to reach"] for line in printed] == [">= 0.95", ">= 4.00", "", "< 25 ms", ""]
    assert {line["row"] for line in found["rows"]} == {"hot", "latency"}
    for line in found["rows"]:
        assert line["value"] > 0
        assert line["failed"] == {}
        assert line["verdict"] in ({"met", "missed"} if line["target"] else {"reported"})
    assert found["database"]["fsync"] == found["database"]["synchronous_commit"] == "on"
    assert found["machine"]["commit"]
    assert found["verified"] == {"credit": "50 accounts verified, 0 with faults"}
    assert re.search(r"^commit +\w+", table, re.MULTILINE)
    assert not run.left_over()


@pytest.mark.long
async def test_a_ledger_that_does_not_add_up_fails_the_run(bench):
    run = bench("--only", "latency")
    await asyncio.to_thread(run.wait_until_it_measures)
    run.process.send_signal(signal.SIGSTOP)
    bystander = uuid.UUID(hashlib.md5(b"49").hexdigest())
    connection = await asyncpg.connect(run.owner_url())
    await connection.execute(
        "UPDATE user_credits SET balance = balance + 1 WHERE user_id = $1", bystander
    )
    await connection.close()
    run.process.send_signal(signal.SIGCONT)
    code, table = await asyncio.to_thread(run.end)
    assert code == 1, "".join(run.progress)
    assert "50 accounts verified, 1 with faults" in table
    assert f"{bystander}: " in table


@pytest.mark.long
def test_an_interrupted_run_ends_its_programs_and_leaves_nothing(bench):
    run = bench("--only", "latency", "--seconds", "60")
    run.wait_until_it_measures()
    run.process.send_signal(signal.SIGINT)
    code, table = run.end()
    assert code == 128 + signal.SIGINT
    assert table == ""
    assert not run.left_over()


@pytest.mark.long
def test_an_unknown_row_is_refused_with_a_list_of_the_known_ones(bench):
    run = bench("--only", "everything")
    code, _ = run.end()
    assert code == 2
    assert "watchers" in "".join(run.progress)


def sample(rate, **failed):
    return Sample(
        rate=rate,
        offered=rate,
        server_us=0,
        database_us=0,
        server=0,
        database=0,
        generator=0.5,
        waited_us=[],
        failed=failed,
    )


def report(*lines, book_adds_up=True):
    extent = Extent(full=False, turns=1, seconds=1, users=1, clients=1)
    return Report(
        extent=extent,
        machine={},
        database={},
        lines=list(lines),
        verified={},
        book_adds_up=book_adds_up,
        others=0,
        seconds=1,
    )


def test_rates_are_compared_turn_by_turn_and_the_median_counts():
    samples = {
        "ours": [sample(400), sample(100), sample(150)],
        "theirs": [sample(200), sample(10), sample(100)],
    }
    assert compared("row", samples, "ours", "theirs").value == 2
    assert compared("row", samples, "ours", "theirs", cost=True).value == 0.5


def test_a_call_that_failed_on_either_side_voids_the_value_and_the_run():
    clean, spoilt = [sample(100)], [sample(100, UNAVAILABLE=2)]
    for samples in ({"a": clean, "b": spoilt}, {"a": spoilt, "b": clean}):
        line = compared("row", samples, "a", "b", target=at_most(5))
        assert line.verdict == "calls failed"
        assert not report(line).good
        assert re.search(r"2 x [ab]: UNAVAILABLE", report(line).text())
    assert report(compared("row", {"a": clean, "b": clean}, "a", "b")).good
    assert not report(book_adds_up=False).good


def test_a_missed_target_is_reported_and_fails_nothing():
    missed = Line(row="latency", measured="p99", value=25, unit="ms", target=below(25))
    met = Line(row="latency", measured="p99", value=24.9, unit="ms", target=below(25))
    assert (missed.verdict, met.verdict) == ("missed", "met")
    assert report(missed, met).good
    assert "1 missed, 1 met" in report(missed, met).text()


def test_a_busy_load_generator_is_reported():
    full = [replace(sample(1), generator=0.95)]
    assert "THE BOTTLENECK" in compared("row", {"a": full, "b": full}, "a", "b").note
    spare = {"a": [sample(1)], "b": [sample(1)]}
    assert "THE BOTTLENECK" not in compared("row", spare, "a", "b").note


def test_a_quantile_is_a_time_that_was_measured():
    thousand = [number * 1000 for number in range(1, 1001)]
    assert quantile_ms(thousand, 0.5) == 500
    assert quantile_ms(thousand, 0.99) == 990
    assert quantile_ms(thousand, 0.999) == 999
    assert quantile_ms([7000], 0.999) == 7


def test_refusals_and_missed_deadlines_of_a_crowd_are_reported_and_other_failures_void_it():
    refusals = {"UNAVAILABLE OVERLOADED": 6, "CANCELLED": 4, "UNAVAILABLE LEDGER_UNAVAILABLE": 1}
    crowd = sample(80, **refusals, DEADLINE_EXCEEDED=2)
    crowd.waited_us.extend([1] * 187)
    best = sample(100)
    line = goodput({"crowd": [crowd], "few": [best]}, "crowd", "few")
    assert (line.value, line.verdict) == (0.8, "met")
    assert line.note.endswith(
        "3.0% OVERLOADED, 2.0% CANCELLED by gRPC unseen, 1.0% missed their deadline,"
        " 0.5% missed it in a lane"
    )
    for failure in ("INTERNAL", "UNAVAILABLE OVERLOADED without RetryInfo", "no answer"):
        line = goodput({"crowd": [sample(80, **{failure: 1})], "few": [best]}, "crowd", "few")
        assert line.failed == {f"crowd: {failure}": 1}
        assert line.verdict == "calls failed"


def test_the_model_of_growth_predicts_by_its_costs():
    one, wide = Measured(rate=4000, cost=440, batch=40), Measured(rate=2000, cost=800, batch=4)
    known = costs(one, wide)
    assert (known.each, known.transaction) == pytest.approx((400, 1600))
    assert known.processors == pytest.approx(1.76)
    assert known.rate(Deployment(1, 1)) == pytest.approx(one.rate)
    # Ten spends in a transaction: 400 + 160 us each.
    assert known.rate(Deployment(1, 4)) == known.rate(Deployment(2, 2))
    assert known.rate(Deployment(1, 4)) == pytest.approx(1.76e6 / 560)
    # A transaction has at least one spend.
    assert known.rate(Deployment(9, 9)) == pytest.approx(1.76e6 / 2000)


async def test_a_flood_is_answered_or_refused_call_by_call(database):
    await database.wait_longer_for_locks()
    await fill(database.owner_url, 0, 1)
    async with running(server_settings(database.service_url, calls_in_flight=10)) as service:
        plan = Plan(
            target=service.target,
            call="flood",
            first_user=0,
            users=1,
            in_flight=0,
            seconds=0.5,
            start_at=time.monotonic(),
            rate=400,
            connections=2,
        )
        outcome = Outcome()
        async with database.locked(uuid.UUID(user_id_of(0))):
            flooding = asyncio.create_task(flood(plan, Users(0, 1), outcome))
            await eventually(lambda: outcome.failed)
        await flooding
    assert set(outcome.failed) <= {"UNAVAILABLE OVERLOADED", "DEADLINE_EXCEEDED"}
    assert outcome.failed["UNAVAILABLE OVERLOADED"]
    assert outcome.begun == len(outcome.waited_us) + sum(outcome.failed.values())
    ((spends,),) = await database.fetch("SELECT count(*) FROM credit_transactions WHERE seq > 1")
    assert spends >= len(outcome.waited_us) > 0
    assert not await database.faults()


def calls_together():
    """How many requests with several calls the services of this process answered."""
    labels = {"method": "CallMany", "code": "OK", "reason": ""}
    return REGISTRY.get_sample_value("credit_calls_total", labels) or 0


@pytest.mark.parametrize("coalesces", [False, True])
async def test_the_client_under_load_coalesces_if_its_plan_says_so(database, coalesces):
    await fill(database.owner_url, 0, 20)
    counted = calls_together()
    async with running(server_settings(database.service_url)) as service:
        plan = Plan(
            target=service.target,
            call=coalesced("client spend") if coalesces else "client spend",
            first_user=0,
            users=20,
            in_flight=20,
            seconds=0.3,
            start_at=time.monotonic(),
        )
        generator = Generator()
        outcome = await generator.carry_out(plan)
        await generator.close()
    assert outcome.begun == len(outcome.waited_us) >= 20
    assert (calls_together() > counted) == coalesces
    ((spends,),) = await database.fetch("SELECT count(*) FROM credit_transactions WHERE seq > 1")
    assert spends == outcome.begun
