"""Refusals as a caller reads them from the socket."""

from dataclasses import dataclass, field, replace

import grpc
from google.rpc import error_details_pb2, status_pb2


@dataclass(frozen=True)
class Refused:
    """A refusal as it came over the socket: the status and its standard details."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    domain: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    violations: dict[str, str] = field(default_factory=dict)
    retry_seconds: float | None = None


def refused(failure: BaseException) -> Refused:
    """Reads a failed call, or the typed error that the client made of one."""
    if not isinstance(failure, grpc.aio.AioRpcError):
        assert isinstance(failure.__cause__, grpc.aio.AioRpcError), failure
        failure = failure.__cause__
    read = Refused(failure.code(), failure.details() or "")
    sent = dict(failure.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    status = status_pb2.Status.FromString(sent)
    if sent:
        assert (status.code, status.message) == (read.code.value[0], read.message)
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            facts = dict(info.metadata)
            read = replace(read, reason=info.reason, domain=info.domain, facts=facts)
        elif detail.Unpack(bad):
            found = {violation.field: violation.description for violation in bad.field_violations}
            read = replace(read, violations=found)
        elif detail.Unpack(retry):
            read = replace(read, retry_seconds=retry.retry_delay.ToTimedelta().total_seconds())
    return read
