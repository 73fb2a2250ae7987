"""Which role may make which call, and how callers are identified; every answer crosses a socket."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2
from kit.callers import EVERY_ROLE, ROLES, Door, bearer, opened, sha256
from kit.http2 import silent_reader
from kit.requests import payment
from kit.services import running, server_settings
from kit.waiting import eventually, patience

from credit_service.errors import PermissionDenied
from credit_service.rpc import access
from credit_service.rpc.access import Authenticator, Caller
from credit_service.runtime.start_errors import StartRefusedError
from credit_service.v1 import credit_service_pb2 as pb

# The contract's table of rights, written out a second time.
MAY_CALL = {
    "GetUserCredit": ("worker", "gateway", "web", "bridge", "operator", "auditor", "consumer"),
    "ListPrices": ("worker", "gateway", "web", "bridge", "operator", "auditor", "consumer"),
    "QuoteCost": ("worker", "gateway", "web", "bridge", "operator", "auditor", "consumer"),
    "GetTransaction": ("worker", "gateway", "web", "bridge", "operator", "auditor", "consumer"),
    "GetTransactionHistory": ("gateway", "web", "operator", "auditor"),
    "SpendCredits": ("worker", "operator"),
    "RefundCredits": ("worker", "operator"),
    "PurchaseCredits": ("bridge", "operator"),
    "ReversePurchase": ("bridge", "operator"),
    "GetHold": ("worker", "gateway", "web", "bridge", "operator", "auditor", "consumer"),
    "ListHolds": ("gateway", "web", "operator", "auditor"),
    "HoldCredits": ("worker", "gateway", "operator"),
    "ReleaseHold": ("worker", "gateway", "operator"),
    "CaptureHold": ("worker", "operator"),
    "ExtendHold": ("worker", "operator"),
    "BatchSpendCredits": ("worker", "operator"),
    "CallMany": ("worker", "operator"),
    "WatchUserCredit": ("gateway", "web", "operator", "auditor"),
    "GrantCredits": ("operator",),
    "ListAccounts": ("operator", "auditor"),
    "AdjustCredits": ("operator",),
    "RevokeGrant": ("bridge", "operator"),
    "ListGrants": ("gateway", "web", "operator", "auditor"),
    "GetLiabilityReport": ("operator", "auditor"),
    "SetAccountPolicy": ("operator",),
    "ListTopUps": ("bridge", "operator"),
    "NoteTopUp": ("bridge", "operator"),
    "FailTopUp": ("bridge", "operator"),
    "StreamTransactions": ("operator", "auditor", "consumer"),
    "GetUsageReport": ("web", "operator", "auditor"),
}


pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
async def door(_shared_database, tmp_path_factory):
    """A service on the shared database that knows a caller of each role."""
    file = tmp_path_factory.mktemp("callers") / "identities.toml"
    async with opened(_shared_database, file, EVERY_ROLE) as door:
        yield door


async def every_call(door, user_id):
    """For each call, a request that succeeds if the role of the caller allows it."""
    top_up = pb.TopUp(below=1000, pack="hundred", charges_per_month=1)
    policy = pb.SetAccountPolicyRequest(user_id=str(user_id), top_up=top_up)
    await door.call("SetAccountPolicy", policy, bearer("operator"))
    spend = await door.call(
        "SpendCredits",
        pb.SpendCreditsRequest(user_id=str(user_id), amount=5, idempotency_key="spend:1:1"),
        bearer("operator"),
    )
    held, released = [
        await door.call(
            "HoldCredits",
            pb.HoldCreditsRequest(user_id=str(user_id), amount=1, idempotency_key=key),
            bearer("operator"),
        )
        for key in ("hold:1:1", "hold:2:1")
    ]
    bought = pb.PurchaseCreditsRequest(
        user_id=str(user_id), amount=5, idempotency_key="bought", payment=payment(f"sold:{user_id}")
    )
    await door.call("PurchaseCredits", bought, bearer("operator"))
    expiring = pb.PurchaseCreditsRequest(
        user_id=str(user_id),
        amount=5,
        idempotency_key="expiring",
        payment=payment(f"expiring:{user_id}"),
        valid_for={"seconds": 3600},
    )
    grant = await door.call("PurchaseCredits", expiring, bearer("bridge"))
    user = {"user_id": str(user_id)}
    listed = await door.call(
        "ListTopUps", pb.ListTopUpsRequest(**user, open_only=True), bearer("operator")
    )
    asked = {**user, "top_up_id": listed.top_ups[0].id}
    this = {**user, "hold_id": held.hold.id}
    write = {**user, "idempotency_key": "the key"}
    return {
        "GetUserCredit": pb.GetUserCreditRequest(**user),
        "ListPrices": pb.ListPricesRequest(),
        "QuoteCost": pb.QuoteCostRequest(items=[pb.Charge(operation="render")], **user),
        "GetTransaction": pb.GetTransactionRequest(idempotency_key="spend:1:1", **user),
        "GetTransactionHistory": pb.GetTransactionHistoryRequest(**user),
        "SpendCredits": pb.SpendCreditsRequest(**{**write, "idempotency_key": "2"}, amount=1),
        "RefundCredits": pb.RefundCreditsRequest(**write, transaction_id=spend.transaction.id),
        "PurchaseCredits": pb.PurchaseCreditsRequest(
            **{**write, "idempotency_key": "3"}, amount=1, payment=payment(f"paid:{user_id}")
        ),
        "ReversePurchase": pb.ReversePurchaseRequest(
            payment_ref=bought.payment.ref,
            reversal_ref=f"re_{user_id}",
            revision=1,
            reversed_minor=1,
            paid_minor=1,
            currency="eur",
            reason="refund",
        ),
        "GetHold": pb.GetHoldRequest(**this),
        "ListHolds": pb.ListHoldsRequest(**user),
        "HoldCredits": pb.HoldCreditsRequest(**{**write, "idempotency_key": "4"}, amount=1),
        "ExtendHold": pb.ExtendHoldRequest(**this),
        "CaptureHold": pb.CaptureHoldRequest(**this, idempotency_key="5"),
        "ReleaseHold": pb.ReleaseHoldRequest(**user, hold_id=released.hold.id, idempotency_key="6"),
        "BatchSpendCredits": pb.BatchSpendCreditsRequest(
            items=[pb.BatchSpendItem(**user, amount=1, idempotency_key="7")],
            mode=pb.BATCH_MODE_ATOMIC,
        ),
        "CallMany": pb.CallManyRequest(items=[{"hold": {**write, "amount": 1}}]),
        "WatchUserCredit": pb.WatchUserCreditRequest(**user),
        "GrantCredits": pb.GrantCreditsRequest(
            **user, amount=1, reason="goodwill", idempotency_key="8"
        ),
        "ListAccounts": pb.ListAccountsRequest(),
        "StreamTransactions": pb.StreamTransactionsRequest(),
        "ListTopUps": pb.ListTopUpsRequest(**user, open_only=True),
        "NoteTopUp": pb.NoteTopUpRequest(**asked, payment_ref=f"topping-up:{user_id}"),
        "FailTopUp": pb.FailTopUpRequest(
            **asked, try_number=1, reason="declined", failure=pb.TOP_UP_FAILURE_TRY_AGAIN
        ),
        "AdjustCredits": pb.AdjustCreditsRequest(
            **user, amount=-1, reason="a slip", idempotency_key="9"
        ),
        "RevokeGrant": pb.RevokeGrantRequest(
            **user, grant_id=grant.transaction.id, reason="withdrawn", idempotency_key="10"
        ),
        "ListGrants": pb.ListGrantsRequest(**user),
        "GetLiabilityReport": pb.GetLiabilityReportRequest(),
        "GetUsageReport": pb.GetUsageReportRequest(
            **user, start_time={"seconds": 1}, end_time={"seconds": 2}
        ),
        "SetAccountPolicy": pb.SetAccountPolicyRequest(**user, frozen=False),
    }


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_may_make_its_calls_and_no_other(role, door, database):
    requests = await every_call(door, await database.user(100))
    assert requests.keys() == {
        method.name for method in pb.DESCRIPTOR.services_by_name["CreditService"].methods
    }
    before = await database.book()
    for name, request in requests.items():
        if role in MAY_CALL[name]:
            continue
        answer = await door.refusal(name, request, bearer(role))
        assert answer.code is grpc.StatusCode.PERMISSION_DENIED, name
        assert (answer.reason, answer.domain) == ("PERMISSION_DENIED", "credit_service")
        assert answer.message == f"A caller with the role {role} may not call {name}."
        assert answer.facts == {"role": role, "action": f"call {name}"}
    assert await database.book() == before
    for name, request in requests.items():
        if role in MAY_CALL[name]:
            await door.call(name, request, bearer(role))


@pytest.mark.parametrize("role", ROLES)
async def test_only_roles_that_may_list_the_history_get_it_with_the_account(role, door, database):
    user_id = await database.user(100)
    plain = pb.GetUserCreditRequest(user_id=str(user_id))
    with_history = pb.GetUserCreditRequest(user_id=str(user_id), history_size=1)
    assert not (await door.call("GetUserCredit", plain, bearer(role))).credit.transaction_history
    if role in MAY_CALL["GetTransactionHistory"]:
        answer = await door.call("GetUserCredit", with_history, bearer(role))
        assert len(answer.credit.transaction_history) == 1
    else:
        answer = await door.refusal("GetUserCredit", with_history, bearer(role))
        assert answer.code is grpc.StatusCode.PERMISSION_DENIED
        assert answer.message == f"A caller with the role {role} may not read the history."


async def test_only_an_operator_refunds_without_naming_a_spend(door, database):
    user_id = await database.user(100)
    request = pb.RefundCreditsRequest(user_id=str(user_id), amount=5, idempotency_key="goodwill")
    before = await database.book()
    answer = await door.refusal("RefundCredits", request, bearer("worker"))
    assert answer.code is grpc.StatusCode.PERMISSION_DENIED
    assert answer.message == "A caller with the role worker may not refund without naming a spend."
    assert await database.book() == before
    assert (await door.call("RefundCredits", request, bearer("operator"))).credit.balance == 105


async def test_the_web_gateway_reports_on_one_user_and_never_on_all(door, database):
    period = {"start_time": {"seconds": 1}, "end_time": {"seconds": 2}}
    of_all = pb.GetUsageReportRequest(**period)
    of_one = pb.GetUsageReportRequest(user_id=str(await database.user(1)), **period)
    answer = await door.refusal("GetUsageReport", of_all, bearer("web"))
    assert answer.code is grpc.StatusCode.PERMISSION_DENIED
    assert answer.message == "A caller with the role web may not report on all users."
    for role, request in (("web", of_one), ("operator", of_all), ("auditor", of_all)):
        assert await door.call("GetUsageReport", request, bearer(role)) == (
            pb.GetUsageReportResponse()
        )


async def test_only_an_operator_adds_credits_without_a_payment(door, database):
    user_id = await database.user()
    request = pb.PurchaseCreditsRequest(user_id=str(user_id), amount=5, idempotency_key="given")
    before = await database.book()
    answer = await door.refusal("PurchaseCredits", request, bearer("bridge"))
    assert answer.code is grpc.StatusCode.PERMISSION_DENIED
    assert answer.message == "A caller with the role bridge may not purchase without a payment."
    assert await database.book() == before
    assert (await door.call("PurchaseCredits", request, bearer("operator"))).credit.balance == 5


async def test_the_bridge_revokes_only_grants_of_its_own_purchases(door, database):
    user_id = str(await database.user(100))
    life = {"valid_for": {"seconds": 3600}}
    given = pb.GrantCreditsRequest(
        user_id=user_id, amount=5, reason="gift", idempotency_key="given", **life
    )
    sold = pb.PurchaseCreditsRequest(
        user_id=user_id,
        amount=7,
        payment=payment(f"sold:{user_id}"),
        idempotency_key="sold",
        **life,
    )
    elsewhere = pb.PurchaseCreditsRequest(
        user_id=user_id,
        amount=9,
        payment=payment(f"else:{user_id}"),
        idempotency_key="else",
        **life,
    )
    others = [
        await door.call("GrantCredits", given, bearer("operator")),
        await door.call("PurchaseCredits", elsewhere, bearer("operator")),
    ]
    own = await door.call("PurchaseCredits", sold, bearer("bridge"))
    revoke = pb.RevokeGrantRequest(user_id=user_id, reason="the order was cancelled")
    before = await database.book()
    places = [other.transaction.id for other in others] + [f"{user_id}-1", f"{user_id}-77"]
    for place in places:
        revoke.grant_id, revoke.idempotency_key = place, f"revoke:{place[-20:]}"
        answer = await door.refusal("RevokeGrant", revoke, bearer("bridge"))
        assert answer.code is grpc.StatusCode.PERMISSION_DENIED
        assert answer.message == (
            "A caller with the role bridge may not revoke a grant that it did not purchase."
        )
    assert await database.book() == before
    revoke.grant_id, revoke.idempotency_key = own.transaction.id, "revoke"
    assert (await door.call("RevokeGrant", revoke, bearer("bridge"))).credit.balance == 114
    revoke.grant_id, revoke.idempotency_key = others[1].transaction.id, "revoke too"
    assert (await door.call("RevokeGrant", revoke, bearer("operator"))).credit.balance == 105


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "token of operator",
        "Basic token of operator",
        "Bearer",
        "Bearer ",
        "Bearertoken of operator",
        "Bearer unknown",
        "Bearer token of operator, Bearer token of operator",
        f"Bearer {sha256('token of operator')}",
    ],
)
async def test_without_a_known_token_every_call_is_refused(authorization, door, database):
    metadata = () if authorization is None else (("authorization", authorization),)
    requests = await every_call(door, await database.user(100))
    before = await database.book()
    for name, request in requests.items():
        answer = await door.refusal(name, request, metadata)
        assert answer.code is grpc.StatusCode.UNAUTHENTICATED, name
        assert (answer.reason, answer.domain) == ("UNAUTHENTICATED", "credit_service")
        assert answer.message.endswith(".")
        assert "token of operator" not in answer.message
    assert await database.book() == before


async def test_a_refused_caller_does_not_learn_whether_its_request_was_well_formed(door):
    garbage = door.channel.unary_unary("/credit_service.v1.CreditService/SpendCredits")
    for metadata in ((), bearer("auditor")):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await garbage(b"\xff", metadata=metadata, timeout=patience(10))
        assert failure.value.code() in {
            grpc.StatusCode.UNAUTHENTICATED,
            grpc.StatusCode.PERMISSION_DENIED,
        }


async def test_unidentified_calls_without_a_request_do_not_keep_callers_out(database, tmp_path):
    file = tmp_path / "identities.toml"
    file.write_text(EVERY_ROLE)
    settings = server_settings(
        database.service_url, authenticator=Authenticator(file), calls_in_flight=4
    )
    async with running(settings) as service, silent_reader(service.port) as stranger:
        for _ in range(12):
            await stranger.call("/credit_service.v1.CreditService/SpendCredits", None)
        await eventually(lambda: stranger.ended == 12)
        async with grpc.aio.insecure_channel(service.target) as channel:
            door = Door(channel, file)
            assert (await door.call("ListPrices", pb.ListPricesRequest(), bearer("worker"))).prices


async def test_the_scheme_of_the_authorization_is_case_insensitive(door):
    for scheme in ("bearer", "BEARER", "Bearer "):
        metadata = (("authorization", f"{scheme} token of auditor"),)
        assert (await door.call("ListPrices", pb.ListPricesRequest(), metadata)).prices


async def test_health_needs_no_token(door):
    for metadata in ((), (("authorization", "Bearer unknown"),), bearer("worker")):
        answer = await door.health.Check(health_pb2.HealthCheckRequest(), metadata=metadata)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watch = door.health.Watch(health_pb2.HealthCheckRequest(), metadata=metadata)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


async def test_reflection_is_for_operators(door):
    listed = await door.reflect(bearer("operator"))
    assert {"credit_service.v1.CreditService", "grpc.health.v1.Health"} <= set(listed)
    for role in set(ROLES) - {"operator"}:
        answer = await door.reflection_refusal(bearer(role))
        assert answer.code is grpc.StatusCode.PERMISSION_DENIED
        assert answer.message == f"A caller with the role {role} may not call ServerReflectionInfo."
    answer = await door.reflection_refusal()
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")


async def test_an_unknown_method_is_unimplemented_with_and_without_credentials(door):
    for path in ("/credit_service.v1.CreditService/Steal", "/other.Service/SpendCredits"):
        for metadata in ((), bearer("operator")):
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await door.channel.unary_unary(path)(b"", metadata=metadata, timeout=patience(10))
            assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("missing", MAY_CALL)
async def test_a_call_without_a_row_in_the_table_prevents_the_start(missing, database, monkeypatch):
    left = {call: who for call, who in access.CALLS.items() if call != missing}
    monkeypatch.setattr(access, "CALLS", left)
    with pytest.raises(StartRefusedError, match=f"{missing} has no row"):
        async with running(server_settings(database.service_url)):
            pass


def test_a_call_without_a_row_is_denied_to_every_role():
    for role in access.Role:
        with pytest.raises(PermissionDenied):
            Caller("a", role).require_call("NewCall")


async def test_every_entry_keeps_the_name_of_its_caller(door, database):
    user_id = str(await database.user())
    bought = await door.call(
        "PurchaseCredits",
        pb.PurchaseCreditsRequest(
            user_id=user_id, amount=10, idempotency_key="1", payment=payment(f"paid:{user_id}")
        ),
        bearer("bridge"),
    )
    spent = await door.call(
        "SpendCredits",
        pb.SpendCreditsRequest(user_id=user_id, amount=3, idempotency_key="2"),
        bearer("worker"),
    )
    refund = await door.call(
        "RefundCredits",
        pb.RefundCreditsRequest(
            user_id=user_id, transaction_id=spent.transaction.id, idempotency_key="3"
        ),
        bearer("operator"),
    )
    callers = [answer.transaction.caller for answer in (bought, spent, refund)]
    assert callers == ["the-bridge", "the-worker", "the-operator"]
    rows = await database.fetch(
        "SELECT caller FROM credit_transactions WHERE user_id = $1::text::uuid ORDER BY seq",
        user_id,
    )
    assert [row["caller"] for row in rows] == callers


async def test_without_identities_every_caller_is_the_operator_local(service, database):
    client = await service.client(token="whatever")
    bought = await client.purchase_credits(await database.user(), 5, payment=None)
    assert bought.transaction.caller == "local"


async def test_callers_of_different_roles_at_the_same_time_are_not_mixed_up(door, database):
    user_id = str(await database.user())

    async def purchase(role, number):
        request = pb.PurchaseCreditsRequest(
            user_id=user_id, amount=1, idempotency_key=f"{role} {number}"
        )
        if role == "operator":
            return (
                await door.call("PurchaseCredits", request, bearer(role))
            ).transaction.caller == "the-operator"
        answer = await door.refusal("PurchaseCredits", request, bearer(role))
        return answer.code is grpc.StatusCode.PERMISSION_DENIED

    calls = [purchase(role, number) for number in range(20) for role in ("operator", "bridge")]
    assert all(await asyncio.gather(*calls))
    assert not await database.faults()
