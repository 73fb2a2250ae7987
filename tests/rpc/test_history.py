"""Reading the book: pages, tokens, filters, past balances, and a bound on the work per page."""

import asyncio
import base64
from datetime import UTC, datetime, timedelta
from uuid import UUID

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from kit.long_book import write_book
from kit.refusals import refused
from kit.requests import payment

from credit_service.errors import InvalidRequest
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared

SPEND, PURCHASE, REFUND, GRANT = (
    pb.TRANSACTION_TYPE_SPEND,
    pb.TRANSACTION_TYPE_PURCHASE,
    pb.TRANSACTION_TYPE_REFUND,
    pb.TRANSACTION_TYPE_GRANT,
)
MICROSECOND = timedelta(microseconds=1)


def asking(user_id: UUID, **request: object) -> pb.GetTransactionHistoryRequest:
    return pb.GetTransactionHistoryRequest(user_id=str(user_id), **request)


async def pages(stub, request) -> list[list[int]]:
    """Follows the tokens to the end; returns the places of the entries, page by page."""
    request = pb.GetTransactionHistoryRequest.FromString(request.SerializeToString())
    seen = []
    while True:
        page = await stub.GetTransactionHistory(request)
        seen.append([entry.seq for entry in page.transactions])
        if not page.next_page_token:
            return seen
        request.page_token = page.next_page_token


async def refusal(call) -> tuple[str, str]:
    """The field and the problem of a call that must be refused as invalid."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    told = refused(failure.value)
    assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"), told
    return told.facts["field"], told.facts["problem"]


def stamp(time: datetime, nanos: int = 0) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(time)
    made.nanos += nanos
    return made


async def test_entries_are_shown_whole_and_newest_first(client, database):
    user_id = await database.user()
    bought = await client.purchase_credits(user_id, 50, payment=payment(), metadata={"a": "b"})
    spent = await client.spend_credits(user_id, operation="render", reference="job")
    given = await client.refund_credits(user_id, spent.transaction.id)
    entries = [entry async for entry in client.get_transaction_history(user_id)]
    assert entries == [given.transaction, spent.transaction, bought.transaction]


async def test_pages_show_every_entry_once_while_new_ones_arrive(client, stub, database):
    user_id = await write_book(database, 95)
    stop = asyncio.Event()

    async def spend_on():
        written = 0
        while not stop.is_set():
            await client.refund_credits(user_id, None, amount=1)
            written += 1
        return written

    spending = asyncio.create_task(spend_on())
    request = asking(user_id, page_size=10)
    seen, arrived = [], []
    while True:
        page = await stub.GetTransactionHistory(request)
        seen += [entry.seq for entry in page.transactions]
        assert len(page.transactions) <= 10
        # The next page is not asked for before the book has grown.
        arrived.append((await client.spend_credits(user_id, amount=1)).transaction.seq)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    stop.set()
    assert await spending > 0
    assert arrived[-1] > seen[0] >= 95
    assert seen == list(range(seen[0], 0, -1))
    assert not await database.faults()


async def test_the_token_ends_exactly_with_the_last_entry(stub, database):
    user_id = await write_book(database, 20)
    assert await pages(stub, asking(user_id, page_size=20)) == [[*range(20, 0, -1)]]
    assert await pages(stub, asking(user_id, page_size=19)) == [[*range(20, 1, -1)], [1]]
    assert [len(page) for page in await pages(stub, asking(user_id, page_size=1))] == [1] * 20


async def test_page_size_is_50_by_default_and_1000_at_most(stub, database):
    user_id = await write_book(database, 1100)
    for asked, given in (
        (0, 50),
        (1, 1),
        (999, 999),
        (1000, 1000),
        (1001, 1000),
        (2**31 - 1, 1000),
    ):
        page = await stub.GetTransactionHistory(asking(user_id, page_size=asked))
        assert len(page.transactions) == given, asked
    for asked in (-1, -(2**31)):
        field, _ = await refusal(stub.GetTransactionHistory(asking(user_id, page_size=asked)))
        assert field == "page_size"


async def test_history_size_takes_the_newest_entries_and_1000_at_most(stub, database):
    user_id = await write_book(database, 1100)
    for asked, given in ((0, 0), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)):
        request = pb.GetUserCreditRequest(user_id=str(user_id), history_size=asked)
        history = (await stub.GetUserCredit(request)).credit.transaction_history
        assert [entry.seq for entry in history] == [*range(1100, 1100 - given, -1)], asked
    request = pb.GetUserCreditRequest(user_id=str(user_id), history_size=-1)
    assert (await refusal(stub.GetUserCredit(request)))[0] == "history_size"


async def test_a_page_of_the_widest_entries_fits_into_an_answer(client, stub, database):
    user_id = await database.user(1000)
    widest = {
        "description": "😀" * 500,
        "reference": "😀" * 255,
        "metadata": {f"{n:02}": "v" * 202 for n in range(20)},
    }
    spends = (client.spend_credits(user_id, amount=1, **widest) for _ in range(300))
    await asyncio.gather(*spends)
    for size in (50, 1000):
        walked = await pages(stub, asking(user_id, page_size=size))
        assert [seq for page in walked for seq in page] == [*range(301, 0, -1)]
    newest = (await client.get_user_credit(user_id, history_size=1000)).transaction_history
    assert [entry.seq for entry in newest] == [*range(301, 301 - len(newest), -1)]
    assert len(newest) >= 50


async def test_a_token_is_bound_to_the_user_and_the_filters(stub, database):
    user_id, other = await write_book(database, 20), await write_book(database, 20)
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    filters = {
        "types": [SPEND, PURCHASE],
        "start_time": stamp(start),
        "end_time": stamp(end),
        "reference": "",
        "related_transaction_id": "",
        "page_size": 5,
    }
    page = await stub.GetTransactionHistory(asking(user_id, **filters))
    token = page.next_page_token
    # The page size may change on the way, and filters may be written in another order.
    same = filters | {"page_size": 7, "types": [PURCHASE, SPEND, SPEND]}
    following = await stub.GetTransactionHistory(asking(user_id, **same, page_token=token))
    assert [entry.seq for entry in following.transactions] == [*range(15, 8, -1)]
    for change in (
        {"types": [SPEND]},
        {"types": []},
        {"start_time": stamp(start, 1)},
        {"start_time": stamp(start + timedelta(seconds=1))},
        {"start_time": None},
        {"end_time": stamp(end, 1)},
        {"end_time": None},
        {"reference": "job"},
        {"related_transaction_id": f"{user_id}-1"},
    ):
        request = asking(user_id, **(filters | change), page_token=token)
        assert (await refusal(stub.GetTransactionHistory(request)))[0] == "page_token", change
    request = asking(other, **filters, page_token=token)
    field, problem = await refusal(stub.GetTransactionHistory(request))
    assert field == "page_token"
    assert "start at the first page" in problem


async def test_a_token_without_times_is_refused_for_a_request_with_zero_times(stub, database):
    user_id = await write_book(database, 20)
    page = await stub.GetTransactionHistory(asking(user_id, page_size=5))
    for change in ({"start_time": Timestamp()}, {"end_time": Timestamp()}):
        request = asking(user_id, page_token=page.next_page_token, **change)
        assert (await refusal(stub.GetTransactionHistory(request)))[0] == "page_token"


async def test_a_forged_or_cut_token_is_refused(stub, database):
    user_id = await write_book(database, 20)
    page = await stub.GetTransactionHistory(asking(user_id, page_size=5))
    token = page.next_page_token
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    forged = [
        token[:-1],
        token[1:],
        token + "A",
        token * 2,
        "A",
        "0",
        "=",
        " " + token,
        token + "\n",
    ]
    forged += ["\x00", "ü" * 27, "A" * len(token), "-" * len(token), "x" * 60_000, f"{user_id}-5"]
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1
        forged.append(base64.urlsafe_b64encode(changed).decode().rstrip("="))
    for text in forged:
        request = asking(user_id, page_size=5, page_token=text)
        assert (await refusal(stub.GetTransactionHistory(request)))[0] == "page_token", text[:80]


async def test_types_select_entries_and_without_them_all_that_moved_the_balance(
    client, stub, database
):
    user_id = await write_book(database, 6)
    await database.execute(
        "INSERT INTO credit_transactions (user_id, seq, type, call, amount, balance_change,"
        " held_change, balance_after, held_after, description, timestamp, reference, caller)"
        " SELECT user_id, 7, 'grant', 'adopted', 0, 0, 0, balance, 0, '', now(), '', 'test'"
        " FROM user_credits WHERE user_id = $1",
        user_id,
    )
    await database.execute("UPDATE user_credits SET seq = 7 WHERE user_id = $1", user_id)
    for types, places in (
        ([], [6, 5, 4, 3, 2, 1]),
        ([SPEND], [6, 4, 2]),
        ([PURCHASE], [5, 1]),
        ([REFUND], [3]),
        ([REFUND, PURCHASE, REFUND], [5, 3, 1]),
        ([GRANT], [7]),
        ([pb.TRANSACTION_TYPE_REVERSAL], []),
        (pb.TransactionType.values()[1:], [7, 6, 5, 4, 3, 2, 1]),
    ):
        assert await pages(stub, asking(user_id, types=types)) == [places], types
    for wrong in (0, max(pb.TransactionType.values()) + 1, -1, 2**31 - 1):
        request = asking(user_id, types=[SPEND, wrong])
        field, problem = await refusal(stub.GetTransactionHistory(request))
        assert field == "types"
        assert str(wrong) in problem


async def test_times_include_the_start_and_exclude_the_end_to_the_nanosecond(stub, database):
    # Places 1 to 12, four seconds of three entries each.
    user_id = await write_book(database, 12, same_time=3)
    second = [datetime(2026, 1, 1, 0, 0, n, tzinfo=UTC) for n in range(5)]
    for start, end, newest, oldest in (
        (None, None, 12, 1),
        (stamp(second[1]), None, 12, 4),
        (stamp(second[1] - MICROSECOND, 999), None, 12, 4),
        (stamp(second[1], 1), None, 12, 7),
        (stamp(second[1] + MICROSECOND), None, 12, 7),
        (None, stamp(second[1]), 3, 1),
        (None, stamp(second[1] - MICROSECOND, 1), 3, 1),
        (None, stamp(second[1], 1), 6, 1),
        (None, stamp(second[1] + MICROSECOND), 6, 1),
        (stamp(second[1]), stamp(second[3]), 9, 4),
        (stamp(second[1]), stamp(second[1]), 0, 1),
        (stamp(second[3]), stamp(second[1]), 0, 1),
        (stamp(second[4]), None, 0, 1),
        (None, stamp(second[0]), 0, 1),
        (Timestamp(), None, 12, 1),
        (Timestamp(seconds=-62135596800), Timestamp(seconds=253402300799), 12, 1),
    ):
        expected = [*range(newest, oldest - 1, -1)]
        for size in (2, 50):
            request = asking(user_id, start_time=start, end_time=end, page_size=size)
            found = [seq for page in await pages(stub, request) for seq in page]
            assert found == expected, (start, end, size)


async def test_a_reference_and_a_settled_entry_select_entries(client, stub, database):
    user_id, other = await database.user(100), await database.user(100)
    spends = [
        (await client.spend_credits(user_id, amount=9, reference=job)).transaction
        for job in ("job", "other job", "job")
    ]
    await client.refund_credits(user_id, spends[0].id, amount=2, reference="job")
    await client.refund_credits(user_id, spends[1].id, amount=2)
    await client.refund_credits(user_id, spends[0].id, amount=3)
    await client.spend_credits(other, amount=1, reference="job")
    for filters, places in (
        ({"reference": "job"}, [5, 4, 2]),
        ({"reference": "other job"}, [3]),
        ({"reference": "jo"}, []),
        ({"reference": "JOB"}, []),
        ({"reference": "%"}, []),
        ({"related_transaction_id": spends[0].id}, [7, 5]),
        ({"related_transaction_id": spends[2].id}, []),
        ({"related_transaction_id": f"{user_id}-999"}, []),
        ({"related_transaction_id": spends[0].id, "reference": "job"}, [5]),
        ({"reference": "job", "types": [SPEND]}, [4, 2]),
        ({"reference": "job", "end_time": spends[2].timestamp, "types": [SPEND]}, [2]),
    ):
        found = [seq for page in await pages(stub, asking(user_id, **filters)) for seq in page]
        assert found == places, filters
    request = asking(user_id, related_transaction_id=f"{other}-2")
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.GetTransactionHistory(request)
    assert refused(failure.value).reason == "TRANSACTION_NOT_FOUND"


async def test_the_client_passes_every_filter_on(client, database):
    user_id = await write_book(database, 300)
    entries = client.get_transaction_history(
        user_id,
        page_size=1,
        types=[SPEND],
        start_time=datetime(2026, 1, 1, 0, 2, tzinfo=UTC),
        end_time=datetime(2026, 1, 1, 0, 4, 59, tzinfo=UTC),
        reference="hundredth",
    )
    assert [entry.seq async for entry in entries] == [200]
    entries = client.get_transaction_history(user_id, related_transaction_id=f"{user_id}-2")
    assert [entry.seq async for entry in entries] == [3]


# No page looks at more than 10,000 entries.


async def test_a_filtered_page_looks_at_10000_entries_and_the_tokens_still_find_all(stub, database):
    user_id = await write_book(database, 25_000)
    for filters in (
        {"types": [REFUND]},
        {"related_transaction_id": f"{user_id}-2"},
        {"types": [REFUND], "related_transaction_id": f"{user_id}-2"},
    ):
        assert await pages(stub, asking(user_id, **filters)) == [[], [], [3]], filters
    # The hundredth entries of the newest 10,000, then those of the next.
    first, second, third = await pages(stub, asking(user_id, reference="hundredth", page_size=1000))
    assert first == [*range(25_000, 15_000, -100)]
    assert second == [*range(15_000, 5_000, -100)]
    assert third == [*range(5_000, 0, -100)]
    # A full page ends early, and the next one looks at 10,000 entries from there.
    few = await pages(stub, asking(user_id, reference="hundredth", page_size=60))
    assert [seq for page in few for seq in page] == [*range(25_000, 0, -100)]
    # No entry matches, and the walk still ends.
    assert await pages(stub, asking(user_id, reference="no such")) == [[], [], []]


async def test_an_unfiltered_walk_over_25000_entries_misses_none(client, stub, database):
    user_id = await write_book(database, 25_000)
    walked = await pages(stub, asking(user_id, page_size=1000))
    assert [seq for page in walked for seq in page] == [*range(25_000, 0, -1)]
    assert {len(page) for page in walked} == {1000}


# The account as it was.


async def test_as_of_shows_the_account_as_it_was_at_every_entry(client, stub, database):
    user_id = await write_book(database, 60, same_time=4)
    entries = [entry async for entry in client.get_transaction_history(user_id)][::-1]
    times = sorted({entry.timestamp.ToDatetime(UTC) for entry in entries})
    assert len(times) == 15
    for time in times:
        for moment, nanos in ((time, 0), (time, 999), (time - MICROSECOND, 999)):
            then = [e for e in entries if e.timestamp.ToDatetime(UTC) <= moment]
            request = pb.GetUserCreditRequest(
                user_id=str(user_id), as_of=stamp(moment, nanos), history_size=3
            )
            credit = (await stub.GetUserCredit(request)).credit
            if not then:
                assert credit == pb.UserCredit(user_id=str(user_id))
                continue
            last = then[-1]
            assert credit == pb.UserCredit(
                user_id=str(user_id),
                balance=last.balance_after,
                available=last.balance_after,
                last_updated=last.timestamp,
                seq=last.seq,
                transaction_history=then[:-4:-1],
            ), moment


async def test_as_of_a_future_time_is_refused_and_now_is_not(client, database):
    user_id, newcomer = await database.user(10), await database.user()
    now = (await database.fetch("SELECT clock_timestamp()"))[0][0]
    assert (await client.get_user_credit(user_id, as_of=now)).balance == 10
    assert (await client.get_user_credit(newcomer, as_of=now)).balance == 0
    assert (await client.get_user_credit(user_id, as_of=datetime.min.replace(tzinfo=UTC))).seq == 0
    for whose in (user_id, newcomer):
        for time in (now + timedelta(hours=1), datetime.max.replace(tzinfo=UTC)):
            with pytest.raises(InvalidRequest) as future:
                await client.get_user_credit(whose, as_of=time)
            assert future.value.field == "as_of"
            assert "still to come" in future.value.problem


async def test_as_of_the_newest_entry_is_never_a_future_time(client, database):
    user_id = await database.user(10)
    # As after a clock that was set back: the account is ahead of the database's clock.
    await database.execute(
        "UPDATE user_credits SET last_updated = now() + interval '1 hour' WHERE user_id = $1",
        user_id,
    )
    ahead = (await client.spend_credits(user_id, amount=1)).transaction
    time = ahead.timestamp.ToDatetime(UTC)
    assert (await client.get_user_credit(user_id, as_of=time)).balance == 9
    with pytest.raises(InvalidRequest):
        await client.get_user_credit(user_id, as_of=time + MICROSECOND)
