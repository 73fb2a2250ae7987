"""Credits spent, refunded and held, per operation and day: exactly the sums of the entries."""

import asyncio
import random
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import grpc
import pytest
from kit.callers import EVERY_ROLE, bearer
from kit.fault_proxy import Kind
from kit.services import running, server_settings
from kit.storm import connected
from kit.waiting import patience

from credit_service.errors import InvalidRequest, UserNotFound
from credit_service.ledger import store
from credit_service.rpc.access import Authenticator
from credit_service.v1 import credit_service_pb2 as pb

FIRST = datetime(2026, 3, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

# How an entry of each type changes balance and held, in multiples of its amount.
_CHANGES = {
    "grant": (1, 0),
    "spend": (-1, 0),
    "refund": (1, 0),
    "hold": (0, 1),
    "capture": (-1, -1),
    "release": (0, -1),
}


class Book:
    """Writes past entries, as the tables' owner and within every constraint."""

    def __init__(self, user_id):
        self.user_id = user_id
        self.rows = []
        self.balance = self.held = 0

    def entry(self, time, kind, amount, operation=None, *, held=None, related=None):
        """Adds an entry; `held` is what a capture was held for."""
        by, held_by = _CHANGES[kind]
        held_change = held_by * (amount if held is None else held)
        self.balance += by * amount
        self.held += held_change
        seq = len(self.rows) + 1
        hold_seq = None if kind not in ("hold", "capture", "release") else related or seq
        self.rows.append(
            {
                "user_id": self.user_id,
                "seq": seq,
                "type": kind,
                "call": "test",
                "amount": amount,
                "balance_change": by * amount,
                "held_change": held_change,
                "balance_after": self.balance,
                "held_after": self.held,
                "floor": -(10**12) if kind in ("spend", "hold") else None,
                "description": "",
                "timestamp": time,
                "operation": operation,
                "reference": "",
                "related_seq": related if kind == "refund" else None,
                "idempotency_key": f"key {seq}",
                "caller": "test",
                "hold_seq": hold_seq,
            }
        )
        return seq

    async def write(self, database):
        """Puts account and entries into the book; every hold must have ended."""
        assert self.held == 0
        connection = await database.connect()
        try:
            async with connection.transaction():
                await connection.execute("INSERT INTO auth.users (id) VALUES ($1)", self.user_id)
                await connection.execute(
                    "INSERT INTO user_credits (user_id, balance, seq, last_updated)"
                    " VALUES ($1, $2, $3, $4)",
                    self.user_id,
                    self.balance,
                    len(self.rows),
                    self.rows[-1]["timestamp"],
                )
                await connection.copy_records_to_table(
                    "credit_transactions",
                    records=[tuple(row.values()) for row in self.rows],
                    columns=list(self.rows[0]),
                )
        finally:
            await connection.close()

    def summed(self, start, end):
        """The report as it must be, from the rows themselves."""
        return summed([self], start, end)


def summed(books, start, end):
    sums = {}
    for book in books:
        for row in book.rows:
            if not start <= row["timestamp"] < end or row["type"] in ("grant", "release"):
                continue
            day = row["timestamp"].astimezone(UTC).strftime("%Y-%m-%d")
            line = sums.setdefault((day, row["operation"] or ""), Counter())
            kind = {"capture": "spend"}.get(row["type"], row["type"])
            line[{"spend": "spent", "refund": "refunded", "hold": "held"}[kind]] += row["amount"]
            line[f"{kind}_count"] += 1
    return [
        pb.UsageLine(day=day, operation=operation, **line)
        for (day, operation), line in sorted(sums.items())
    ]


def at(day, hour=12, minute=0):
    return FIRST + timedelta(days=day, hours=hour, minutes=minute)


async def test_a_story_counted_by_hand(database, client):
    book = Book(uuid4())
    book.entry(at(0), "grant", 1000)
    separation = book.entry(at(0, 13), "spend", 10, "stem_separation")
    book.entry(at(0, 14), "spend", 20, "stem_separation")
    book.entry(at(0, 15), "spend", 7)
    hold = book.entry(at(0, 23, 59), "hold", 15, "render")
    book.entry(at(1, 0), "capture", 5, "render", held=15, related=hold)
    book.entry(at(1, 1), "refund", 4, "stem_separation", related=separation)
    book.entry(at(1, 2), "refund", 6, "stem_separation", related=separation)
    given_up = book.entry(at(1, 3), "hold", 30, "render")
    book.entry(at(1, 4), "release", 30, "render", related=given_up)
    await book.write(database)
    report = await client.get_usage_report(at(0, 0), at(2, 0), user_id=book.user_id)
    one, two = "2026-03-01", "2026-03-02"
    assert report == [
        pb.UsageLine(day=one, operation="", spent=7, spend_count=1),
        pb.UsageLine(day=one, operation="render", held=15, hold_count=1),
        pb.UsageLine(day=one, operation="stem_separation", spent=30, spend_count=2),
        pb.UsageLine(day=two, operation="render", spent=5, held=30, spend_count=1, hold_count=1),
        pb.UsageLine(day=two, operation="stem_separation", refunded=10, refund_count=2),
    ]
    assert report == book.summed(at(0, 0), at(2, 0))


async def test_the_newest_entries_are_in_the_report(database, client):
    user_id = await database.user(1000)
    start = datetime.now(UTC) - timedelta(days=1)
    spend = await client.spend_credits(user_id, operation="stem_separation", quantity=2)
    await client.refund_credits(user_id, transaction_id=spend.transaction.id, amount=5)
    made = await client.hold_credits(user_id, operation="render", quantity=4)
    await client.capture_hold(user_id, made.hold.id, quantity=3)
    lost = await client.hold_credits(user_id, amount=9)
    await client.release_hold(user_id, lost.hold.id)
    items = [
        pb.BatchSpendItem(user_id=str(user_id), amount=2, idempotency_key=f"{n}") for n in range(3)
    ]
    await client.batch_spend_credits(items, mode=pb.BATCH_MODE_ATOMIC)
    report = await client.get_usage_report(start, start + timedelta(days=2), user_id=user_id)
    sums = Counter()
    for line in report:
        sums.update(
            {
                (line.operation, name): getattr(line, name)
                for name in ("spent", "refunded", "held", "spend_count", "refund_count")
            }
        )
    assert +sums == Counter(
        {
            ("stem_separation", "spent"): 20,
            ("stem_separation", "refunded"): 5,
            ("stem_separation", "spend_count"): 1,
            ("stem_separation", "refund_count"): 1,
            ("render", "spent"): 15,
            ("render", "held"): 20,
            ("render", "spend_count"): 1,
            ("", "held"): 9,
            ("", "spent"): 6,
            ("", "spend_count"): 3,
        }
    )
    assert not await database.faults()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_reports_are_the_sums_of_the_entries(database, client, seed):
    """Random books over five weeks, and random bounds, many of them at the time of an entry."""
    lots = random.Random(seed)
    print(f"seed {seed}")
    books = [_random_book(lots) for _ in range(4)]
    for book in books:
        await book.write(database)
    times = sorted(row["timestamp"] for book in books for row in book.rows)
    for _ in range(25):
        start = lots.choice(times) + lots.choice([-1, 0, 0, 1]) * MICROSECOND
        length = lots.choice([timedelta(hours=lots.randint(1, 48)), timedelta(days=31)])
        end = start + length
        inside = [time for time in times if start < time < end]
        if inside and lots.random() < 0.5:
            end = lots.choice(inside)
        book = lots.choice(books)
        mine = await client.get_usage_report(start, end, user_id=book.user_id)
        assert mine == book.summed(start, end), (start, end)
        everybodys = await client.get_usage_report(start, end)
        assert everybodys == summed(books, start, end), (start, end)


def _random_book(lots):
    book = Book(uuid4())
    time = FIRST
    book.entry(time, "grant", 10**6)
    spends, holds = [], []
    for _ in range(lots.randint(60, 120)):
        # Entries of one batch have one time.
        time += lots.choice([timedelta(), MICROSECOND, timedelta(hours=lots.uniform(0, 18))])
        operation = lots.choice([None, "render", "stem_separation", "since_removed"])
        match lots.choice(["spend", "refund", "hold", "hold", "settle", "settle"]):
            case "spend":
                amount = lots.randint(1, 50)
                spends.append([book.entry(time, "spend", amount, operation), amount, operation])
            case "refund" if spends:
                spend = lots.choice(spends)
                if spend[1] > 0:
                    back = lots.randint(1, spend[1])
                    spend[1] -= back
                    book.entry(time, "refund", back, spend[2], related=spend[0])
            case "hold":
                amount = lots.randint(1, 50)
                holds.append((book.entry(time, "hold", amount, operation), amount, operation))
            case "settle" if holds:
                _settle(lots, book, time, holds.pop(lots.randrange(len(holds))))
    while holds:
        _settle(lots, book, time, holds.pop())
    return book


def _settle(lots, book, time, hold):
    seq, amount, operation = hold
    if lots.random() < 0.7:
        taken = lots.randint(1, amount)
        book.entry(time, "capture", taken, operation, held=amount, related=seq)
    else:
        book.entry(time, "release", amount, operation, related=seq)


async def test_days_are_of_utc_whatever_the_zone_of_the_database(database):
    await database.execute(f"ALTER DATABASE {database.name} SET timezone = 'Pacific/Auckland'")
    book = Book(uuid4())
    book.entry(at(0), "grant", 1000)
    book.entry(at(0, 23, 59), "spend", 1)
    book.entry(at(1, 0), "spend", 2)
    await book.write(database)
    async with running(server_settings(database.service_url)) as service:
        client = await service.client()
        for user_id in (None, book.user_id):
            report = await client.get_usage_report(at(0, 0), at(2, 0), user_id=user_id)
            assert [(line.day, line.spent) for line in report] == [
                ("2026-03-01", 1),
                ("2026-03-02", 2),
            ]


async def test_the_start_belongs_to_the_report_and_the_end_does_not(database, client):
    book = Book(uuid4())
    book.entry(at(0, 0), "grant", 1000)
    for day, amount in ((1, 1), (2, 2), (3, 4)):
        book.entry(at(day, 0), "spend", amount, "render")
    await book.write(database)

    async def spent(start, end):
        lines = await client.get_usage_report(start, end, user_id=book.user_id)
        assert lines == await client.get_usage_report(start, end)
        return sum(line.spent for line in lines)

    assert await spent(at(1, 0), at(3, 0)) == 3
    assert await spent(at(1, 0), at(3, 0) + MICROSECOND) == 7
    assert await spent(at(1, 0) + MICROSECOND, at(3, 0)) == 2
    assert await spent(at(1, 0) - MICROSECOND, at(1, 0)) == 0
    assert await spent(at(0, 0), at(31, 0)) == 7


async def test_bounds_are_required_in_order_and_within_31_days(database, client):
    user_id = await database.user(1)
    month = timedelta(days=31)
    assert await client.get_usage_report(FIRST, FIRST + month) == []
    far = datetime(9999, 12, 30, tzinfo=UTC)
    assert await client.get_usage_report(far, far + timedelta(hours=1), user_id=user_id) == []
    for start, end, field in (
        (FIRST, FIRST + month + MICROSECOND, "end_time"),
        (FIRST, FIRST, "end_time"),
        (FIRST, FIRST - MICROSECOND, "end_time"),
        (None, FIRST, "start_time"),
        (FIRST, None, "end_time"),
        (None, None, "start_time"),
    ):
        for who in (None, user_id):
            with pytest.raises(InvalidRequest) as refusal:
                await client.get_usage_report(start, end, user_id=who)
            assert refusal.value.field == field
    with pytest.raises(InvalidRequest):
        await client.get_usage_report(FIRST, FIRST + month, user_id="nobody")
    with pytest.raises(UserNotFound):
        await client.get_usage_report(FIRST, FIRST + month, user_id=uuid4())
    with pytest.raises(ValueError, match="zone"):
        await client.get_usage_report(FIRST.replace(tzinfo=None), FIRST)


async def test_a_known_user_without_an_account_has_an_empty_report(database, client):
    user_id = await database.user()
    end = FIRST + timedelta(days=1)
    assert await client.get_usage_report(FIRST, end, user_id=user_id) == []


async def test_reports_and_other_reads_do_not_wait_for_each_others_connections(database, proxy):
    user_id = await database.user(10)
    async with running(server_settings(proxy.url, pool_size=1)) as service:
        client = await service.client()
        end = FIRST + timedelta(days=1)
        report_stuck = proxy.on(
            "^" + re.escape(store.SQL["report_usage"].splitlines()[0]), Kind.HOLD
        )
        report = asyncio.create_task(client.get_usage_report(FIRST, end))
        await report_stuck.met.wait()
        assert (await client.get_user_credit(user_id)).balance == 10
        await client.spend_credits(user_id, amount=1)
        proxy.forget()
        assert await report == []

        read_stuck = proxy.on(
            "^" + re.escape(store.SQL["changed_accounts"].splitlines()[0]), Kind.HOLD
        )
        read = asyncio.create_task(client.get_user_credit(user_id))
        await read_stuck.met.wait()
        assert await client.get_usage_report(FIRST, end) == []
        proxy.forget()
        assert (await read).balance == 9


async def test_the_report_reads_within_its_own_time_limit(database, proxy):
    async with running(server_settings(proxy.url)) as service:
        client = await service.client()
        limit = proxy.on("SET LOCAL statement_timeout = '60s'", Kind.HOLD, nth=10**9)
        await client.get_usage_report(FIRST, FIRST + timedelta(days=1))
        assert limit.seen == 1
    connection = await asyncpg.connect(database.service_url)
    assert await connection.fetchval("SHOW statement_timeout") == "2s"
    await connection.close()


@pytest.mark.parametrize("role", ["worker", "gateway", "bridge", "operator", "auditor"])
async def test_operators_and_auditors_may_report(database, tmp_path, role):
    (tmp_path / "identities.toml").write_text(EVERY_ROLE)
    authenticator = Authenticator(tmp_path / "identities.toml")
    request = pb.GetUsageReportRequest()
    request.start_time.FromDatetime(FIRST)
    request.end_time.FromDatetime(FIRST + timedelta(days=1))
    may = role in ("operator", "auditor")
    async with (
        running(server_settings(database.service_url, authenticator=authenticator)) as service,
        connected(service.target) as stub,
    ):
        code = await stub.GetUsageReport(
            request, metadata=bearer(role), timeout=patience(10)
        ).code()
    assert code == (grpc.StatusCode.OK if may else grpc.StatusCode.PERMISSION_DENIED)
