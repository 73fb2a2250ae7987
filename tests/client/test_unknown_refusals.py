"""A client meets refusals that it does not know: of a later service, of a proxy, of gRPC itself."""

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from kit.answering import USER, answering, every_call

from credit_service import errors
from credit_service.client import CreditClient, item_error
from credit_service.errors import InternalError, LedgerUnavailable, OutcomeUnknown, UnknownRefusal
from credit_service.v1 import credit_service_pb2 as pb

# These codes mean that there is no final answer; every other code is one.
NO_ANSWER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
)

# The codes of servers and proxies that failed.
FAILED = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)

DEFINITE = sorted(
    set(grpc.StatusCode) - {*NO_ANSWER, *FAILED, grpc.StatusCode.OK}, key=lambda code: code.value[0]
)


def later_refusal(code, reason="GRANT_LAPSED", **facts):
    """An answer of a later service, whose reason this client does not know."""
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="credit_service", metadata=facts))
    number = code.value[0]
    return status_pb2.Status(code=number, message="The grant has lapsed.", details=[packed])


@pytest.mark.parametrize("code", [code for code in DEFINITE if code.name != "UNAUTHENTICATED"])
async def test_an_unknown_reason_is_a_refusal_with_its_reason_and_message(code):
    refusal = later_refusal(code, grant="g-1", credits="7")
    async with answering() as server, CreditClient(server.target) as client:
        server.always = refusal
        for call in every_call(client).values():
            server.received.clear()
            with pytest.raises(errors.Refusal) as raised:
                await call()
            assert len(server.received) == 1
            assert raised.value.reason == "GRANT_LAPSED"
            assert str(raised.value) == "The grant has lapsed."
            assert raised.value.facts == {"grant": "g-1", "credits": "7"}


@pytest.mark.parametrize("code", [code for code in DEFINITE if code.name != "UNAUTHENTICATED"])
async def test_a_definite_status_without_a_reason_is_a_refusal_named_after_its_code(code):
    """A proxy, or gRPC itself, refuses in this way."""
    async with answering() as server, CreditClient(server.target) as client:
        server.always = code
        for call in every_call(client).values():
            with pytest.raises(UnknownRefusal) as raised:
                await call()
            assert (raised.value.reason, str(raised.value)) == (code.name, "said the server")


async def test_a_proxy_that_refuses_the_credentials_is_unauthenticated():
    async with answering() as server, CreditClient(server.target) as client:
        server.always = grpc.StatusCode.UNAUTHENTICATED
        for call in every_call(client).values():
            with pytest.raises(errors.Unauthenticated, match="said the server"):
                await call()


@pytest.mark.parametrize("code", NO_ANSWER)
async def test_an_unknown_reason_of_a_call_without_a_final_answer_is_no_refusal(code):
    async with answering() as server, CreditClient(server.target) as client:
        server.always = later_refusal(code, "SHARD_MOVED")
        with pytest.raises(OutcomeUnknown):
            await client.spend_credits(USER, amount=1)
        with pytest.raises((LedgerUnavailable, InternalError)):
            await client.list_prices()


def test_an_item_of_a_batch_has_unknown_reasons_too():
    later = later_refusal(grpc.StatusCode.FAILED_PRECONDITION)
    result = pb.BatchSpendResult()
    result.status.ParseFromString(later.SerializeToString())
    error = item_error(result)
    assert isinstance(error, UnknownRefusal)
    assert (error.reason, str(error)) == ("GRANT_LAPSED", "The grant has lapsed.")


async def test_work_is_not_repeated_for_a_refusal_that_is_unknown(database, service):
    """The capture would be repeated for two minutes if it were taken for no answer."""
    user_id = await database.user(10)
    async with (
        answering() as server,
        CreditClient(service.target) as client,
        CreditClient(server.target) as later,
    ):
        server.always = later_refusal(grpc.StatusCode.FAILED_PRECONDITION)
        async with client.hold(user_id, amount=5, job="song-1") as work:
            work._client = later
            with pytest.raises(UnknownRefusal):
                await work.capture()
            assert [received.method for received in server.received] == ["CaptureHold"]
            work._client = client
    assert not await database.faults()
