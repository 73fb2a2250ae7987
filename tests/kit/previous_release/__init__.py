"""The release before grants: its contract, calls with its answers, and the book that they left.

`PYTHONPATH=tests .venv/bin/python -m kit.previous_release REVISION` writes the files from that
release's own code; run it when a release becomes the previous one, and set its last migration here.
"""

import json
import re
from functools import cache
from pathlib import Path

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2, status_pb2

FOLDER = Path(__file__).resolve().parent
LAST_MIGRATION = 8

# The requests of the calls and their answers, each without a user.
CALLS = FOLDER / "calls.jsonl"
BOOK = FOLDER / "book.sql"
CONTRACT = FOLDER / "contract.binpb"
USERS = ("11111111-0000-4000-8000-000000000001", "22222222-0000-4000-8000-000000000002")

_SERVICE = "credit_service.v1.CreditService"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")


class Contract:
    """The calls of that release, on messages without newer fields."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._methods = _pool().FindServiceByName(_SERVICE).methods_by_name

    def ask(self, method: str, request: dict) -> dict:
        """Makes a call; returns its response (of a stream, the first) or its refusal."""
        described = self._methods[method]
        asked = message_factory.GetMessageClass(described.input_type)()
        json_format.ParseDict(request, asked, descriptor_pool=_pool())
        answered = message_factory.GetMessageClass(described.output_type)
        one = (
            self._channel.unary_stream if described.server_streaming else self._channel.unary_unary
        )
        call = one(
            f"/{_SERVICE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answered.FromString,
        )
        try:
            response = call(asked, timeout=60, wait_for_ready=True)
            if described.server_streaming:
                first = next(response)
                response.cancel()
                response = first
        except grpc.RpcError as failure:
            return {"refusal": _refusal(failure)}
        return json_format.MessageToDict(response, descriptor_pool=_pool())


def calls() -> list[tuple[str, dict, dict]]:
    """The calls in their order: method, request, and the answer of that release."""
    return [tuple(json.loads(line)) for line in CALLS.read_text().splitlines()]


def without_times(answer: dict) -> dict:
    """The answer with every time replaced, because each run has other times."""
    return json.loads(_TIME.sub("a time", json.dumps(answer)))


def _refusal(failure: grpc.RpcError) -> dict:
    sent = dict(failure.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(sent).details:
        if detail.Unpack(info):
            break
    return {"code": failure.code().name, "reason": info.reason, "facts": dict(info.metadata)}


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    """A pool with only that release's messages, separate from the present ones."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes()).file:
        pool.Add(file)
    return pool
