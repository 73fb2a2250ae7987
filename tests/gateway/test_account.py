"""The reads of a user: the account, history, holds, prices, quotes, usage."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from kit.gateways import gateway_settings, problem, running_gateway
from kit.requests import payment
from kit.services import running, server_settings


@pytest.fixture(scope="module")
async def shared(make_shared_database):
    database = await make_shared_database()
    async with (
        running(server_settings(database.service_url)) as service,
        running_gateway(gateway_settings(service.target)) as gateway,
    ):
        yield database, await service.client(), gateway


@pytest.fixture
def database(shared):
    return shared[0]


@pytest.fixture
def client(shared):
    return shared[1]


@pytest.fixture
def gateway(shared):
    return shared[2]


async def test_the_account_shows_the_credits_that_can_be_spent(database, client, gateway):
    user_id = await database.user(100)
    await client.hold_credits(user_id, amount=30)
    await client.set_account_policy(user_id, min_balance=5)
    answer = await gateway.get(user_id, "/account")
    assert answer.status_code == 200
    shown = answer.json()
    assert datetime.fromisoformat(shown.pop("updated_at")) <= datetime.now(UTC)
    assert shown == {
        "balance": 100,
        "held": 30,
        "available": 70,
        "spendable": 65,
        "min_balance": 5,
        "alert_below": None,
        "low": False,
        "frozen": False,
        "seq": 2,
        "expiring": [],
    }


async def test_the_account_says_whether_it_is_low(database, client, gateway):
    user_id = await database.user(100)
    for threshold, frozen, low in [(100, False, False), (101, False, True), (101, True, False)]:
        await client.set_account_policy(user_id, alert_below=threshold, frozen=frozen)
        shown = (await gateway.get(user_id, "/account")).json()
        assert (shown["alert_below"], shown["low"]) == (threshold, low)


async def test_the_account_shows_the_credits_that_expire_next(database, client, gateway):
    user_id = await database.user(100)
    times = [datetime(2027, month, 1, tzinfo=UTC) for month in (3, 4)]
    for time in times:
        await client.grant_credits(user_id, 40, reason="gift", expire_time=time)
    shown = (await gateway.get(user_id, "/account")).json()
    assert shown["expiring"] == [
        {"amount": 40, "at": "2027-03-01T00:00:00.000Z"},
        {"amount": 40, "at": "2027-04-01T00:00:00.000Z"},
    ]


async def test_nothing_can_be_spent_from_a_frozen_account_or_from_debt(database, client, gateway):
    frozen, indebted = await database.user(100), await database.user(10)
    await client.set_account_policy(frozen, frozen=True)
    await client.set_account_policy(indebted, min_balance=-50)
    await client.spend_credits(indebted, amount=40)
    await client.set_account_policy(indebted, min_balance=0)
    shown = (await gateway.get(frozen, "/account")).json()
    assert (shown["balance"], shown["spendable"], shown["frozen"]) == (100, 0, True)
    shown = (await gateway.get(indebted, "/account")).json()
    assert (shown["balance"], shown["available"], shown["spendable"]) == (-30, -30, 0)


async def test_a_user_whom_the_service_does_not_know_yet_has_an_empty_account(gateway):
    stranger = uuid4()
    shown = (await gateway.get(stranger, "/account")).json()
    assert (shown["balance"], shown["seq"], shown["updated_at"]) == (0, 0, None)
    for path in ("/transactions", "/holds"):
        assert (await gateway.get(stranger, path)).json() == {"items": [], "next_cursor": None}
    assert (await gateway.get(stranger, "/usage")).json()["days"] == []
    work = {"items": [{"operation": "render"}]}
    quote = (await gateway.post(stranger, "/quotes", work)).json()
    assert (quote["total"], quote["affordable"], quote["shortfall"]) == (5, False, 5)


async def test_history_shows_only_fields_that_a_user_may_see(database, client, gateway):
    user_id = await database.user()
    await client.purchase_credits(
        user_id,
        100,
        payment=payment(f"pi_{user_id}"),
        reference="internal reference",
        metadata={"internal": "fact"},
    )
    await client.spend_credits(
        user_id, operation="render", quantity=2, description="two <img src=x onerror=alert(1)>"
    )
    await client.grant_credits(user_id, 7, reason="angry customer, see ticket")
    shown = (await gateway.get(user_id, "/transactions")).json()
    assert shown["next_cursor"] is None
    grant, spend, purchase = shown["items"]
    assert [entry["type"] for entry in shown["items"]] == ["grant", "spend", "purchase"]
    assert grant["description"] == ""
    assert spend["description"] == "two <img src=x onerror=alert(1)>"
    assert (spend["operation"], spend["quantity"], spend["unit_cost"]) == ("render", 2, 5)
    assert (spend["balance_change"], spend["balance_after"]) == (-10, 90)
    assert (purchase["operation"], purchase["quantity"], purchase["hold_id"]) == (None, None, None)
    assert purchase.keys() == {
        "id", "seq", "type", "amount", "balance_change", "held_change", "balance_after",
        "held_after", "description", "timestamp", "operation", "quantity", "unit_cost",
        "related_transaction_id", "hold_id",
    }  # fmt: skip


async def test_history_comes_in_pages_that_belong_to_their_user(database, client, gateway):
    user_id, other = await database.user(100), await database.user(100)
    for _ in range(3):
        await client.spend_credits(user_id, operation="render")
    seen, cursor = [], None
    while True:
        parameters = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await gateway.get(user_id, "/transactions", params=parameters)).json()
        seen += [entry["seq"] for entry in page["items"]]
        assert len(page["items"]) <= 2
        if (cursor := page["next_cursor"]) is None:
            break
        stolen = await gateway.get(other, "/transactions", params={"limit": 2, "cursor": cursor})
        assert problem(stolen) == (400, "INVALID_REQUEST")
        assert stolen.json()["field"] == "cursor"
    assert seen == [4, 3, 2, 1]
    spends = await gateway.get(user_id, "/transactions?type=spend&type=refund")
    assert [entry["seq"] for entry in spends.json()["items"]] == [4, 3, 2]


async def test_open_holds_are_listed(database, client, gateway):
    user_id = await database.user(100)
    first = (await client.hold_credits(user_id, operation="stem_separation")).hold
    await client.release_hold(user_id, (await client.hold_credits(user_id, amount=5)).hold.id)
    (shown,) = (await gateway.get(user_id, "/holds")).json()["items"]
    assert (shown["id"], shown["state"], shown["amount"]) == (first.id, "held", 10)
    assert (shown["operation"], shown["quantity"]) == ("stem_separation", 1)
    assert datetime.fromisoformat(shown["expires_at"]) > datetime.now(UTC)


async def test_prices_and_quotes_show_the_cost_before_the_work(database, client, gateway):
    user_id = await database.user(20)
    prices = (await gateway.get(user_id, "/prices")).json()
    assert prices["items"] == [
        {"operation": "render", "unit_cost": 5, "unit": "render"},
        {"operation": "stem_separation", "unit_cost": 10, "unit": "separation"},
    ]
    work = {"items": [{"operation": "stem_separation"}, {"operation": "render", "quantity": 3}]}
    quote = (await gateway.post(user_id, "/quotes", work)).json()
    assert quote == {
        "lines": [
            {"operation": "stem_separation", "quantity": 1, "unit_cost": 10, "cost": 10},
            {"operation": "render", "quantity": 3, "unit_cost": 5, "cost": 15},
        ],
        "total": 25,
        "price_version": prices["price_version"],
        "spendable": 20,
        "affordable": False,
        "shortfall": 5,
    }
    await client.set_account_policy(user_id, frozen=True)
    one = {"items": [{"operation": "render"}]}
    quote = (await gateway.post(user_id, "/quotes", one)).json()
    assert (quote["spendable"], quote["affordable"], quote["shortfall"]) == (0, False, 0)


async def test_usage_adds_up_days_and_operations(database, client, gateway):
    user_id = await database.user(100)
    spend = await client.spend_credits(user_id, operation="render", quantity=2)
    await client.refund_credits(user_id, spend.transaction.id, amount=3)
    today = datetime.now(UTC).date()
    shown = (await gateway.get(user_id, "/usage")).json()
    assert (shown["from"], shown["to"]) == (str(today - timedelta(days=29)), str(today))
    (day,) = [day for day in shown["days"] if day["operation"] == "render"]
    assert day == {
        "date": str(today),
        "operation": "render",
        "spent": 10,
        "refunded": 3,
        "held": 0,
        "count": 1,
    }
    before = {"from": str(today - timedelta(days=40)), "to": str(today - timedelta(days=10))}
    assert (await gateway.get(user_id, "/usage", params=before)).json()["days"] == []


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/account?user_id=1", "user_id"),
        ("/transactions?user_id=1", "user_id"),
        ("/transactions?limit=0", "limit"),
        ("/transactions?limit=201", "limit"),
        ("/transactions?limit=-1", "limit"),
        ("/transactions?limit=1&limit=2", "limit"),
        ("/transactions?cursor=nonsense", "cursor"),
        (f"/transactions?cursor={'x' * 600}", "cursor"),
        ("/transactions?type=everything", "type"),
        ("/holds?type=held", "type"),
        ("/holds?cursor=AAAA", "cursor"),
        ("/prices?user_id=1", "user_id"),
        ("/usage?from=2026-11-31", "from"),
        ("/usage?from=2026-11-02&to=2026-11-01", "from"),
        ("/usage?from=2026-10-01&to=2026-11-01", "from"),
        ("/usage?from=yesterday", "from"),
        ("/account/stream?user_id=1", "user_id"),
    ],
)
async def test_the_refusal_of_a_malformed_request_names_the_field(path, field, database, gateway):
    answer = await gateway.get(await database.user(), path)
    assert problem(answer) == (400, "INVALID_REQUEST")
    assert answer.json()["field"] == field
