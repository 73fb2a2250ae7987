"""CallMany, and the single calls of its items."""

from uuid import uuid4

import grpc
from google.rpc import error_details_pb2, status_pb2
from kit.waiting import patience

from credit_service.v1 import credit_service_pb2 as pb

METHODS = {"spend": "SpendCredits", "hold": "HoldCredits", "capture": "CaptureHold"}


def spend(user_id, amount=1, key=None, **changes):
    """An item that spends; changes are fields of its request."""
    request = pb.SpendCreditsRequest(
        user_id=str(user_id), amount=amount, idempotency_key=key or uuid4().hex, **changes
    )
    return pb.CallManyItem(spend=request)


def hold(user_id, amount=1, key=None, **changes):
    """An item that holds."""
    request = pb.HoldCreditsRequest(
        user_id=str(user_id), amount=amount, idempotency_key=key or uuid4().hex, **changes
    )
    return pb.CallManyItem(hold=request)


def capture(user_id, hold_id, key=None, **changes):
    """An item that captures."""
    request = pb.CaptureHoldRequest(
        user_id=str(user_id), hold_id=hold_id, idempotency_key=key or uuid4().hex, **changes
    )
    return pb.CallManyItem(capture=request)


def request_of(items):
    """A request whose items have their places as indexes."""
    request = pb.CallManyRequest(items=items)
    for place, item in enumerate(request.items):
        item.index = place
    return request


def begun(stub, items, **options):
    """Begins a CallMany and returns the call."""
    return stub.CallMany(request_of(items), **({"timeout": patience(10)} | options))


async def responses(stub, items, **options):
    """The responses to a CallMany, in the order in which they come."""
    return [response async for response in begun(stub, items, **options)]


async def results(stub, items, **options):
    """The results of a CallMany, in the order of the items."""
    found = {}
    for response in await responses(stub, items, **options):
        for result in response.results:
            assert result.index not in found
            found[result.index] = result
    assert sorted(found) == list(range(len(items)))
    return [found[place] for place in range(len(items))]


async def result_of_single_call(stub, item, **options):
    """Makes an item's single call, and puts its answer into a result."""
    kind = item.WhichOneof("call")
    result = pb.CallManyResult(index=item.index)
    try:
        call = getattr(stub, METHODS[kind])
        response = await call(getattr(item, kind), **({"timeout": patience(10)} | options))
    except grpc.aio.AioRpcError as failure:
        sent = dict(failure.trailing_metadata() or ())["grpc-status-details-bin"]
        status = status_pb2.Status.FromString(sent)
        result.error.code, result.error.message = status.code, status.message
        result.error.details.extend(status.details)
    else:
        getattr(result, kind).CopyFrom(response)
    return result


def reason(result):
    """The reason of a result that is an error; otherwise an empty text."""
    if not result.HasField("error"):
        return ""
    return info(result).reason


def info(result):
    """The ErrorInfo of a result."""
    found = error_details_pb2.ErrorInfo()
    assert result.error.details[0].Unpack(found)
    return found
