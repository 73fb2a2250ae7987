"""Callers of every role, and a service that knows them by a file."""

import hashlib
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from kit.refusals import refused
from kit.services import running, server_settings
from kit.waiting import patience

from credit_service.rpc.access import Authenticator
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

ROLES = ("worker", "gateway", "web", "bridge", "operator", "auditor")


def sha256(token):
    return hashlib.sha256(token.encode()).hexdigest()


def identity(name, role, token):
    return f'[[identity]]\nname = "{name}"\nrole = "{role}"\ntoken_sha256 = "{sha256(token)}"\n'


EVERY_ROLE = "\n".join(identity(f"the-{role}", role, f"token of {role}") for role in ROLES)


def bearer(role):
    return (("authorization", f"Bearer token of {role}"),)


class Door:
    """Makes calls of the contract with any metadata, and the calls of other services."""

    def __init__(self, channel, file):
        self.channel = channel
        self.file = file
        self.stub = pb_grpc.CreditServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    async def call(self, name, request, metadata=()):
        call = getattr(self.stub, name)(request, metadata=metadata, timeout=patience(10))
        if name not in {"WatchUserCredit", "StreamTransactions", "CallMany"}:
            return await call
        try:
            return await call.read()
        finally:
            call.cancel()

    async def refusal(self, name, request, metadata=()):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await self.call(name, request, metadata)
        return refused(failure.value)

    async def reflect(self, metadata):
        """Asks for the names of the services."""
        call = reflection_pb2_grpc.ServerReflectionStub(self.channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), metadata=metadata
        )
        return [
            service.name
            async for answer in call
            for service in answer.list_services_response.service
        ]

    async def reflection_refusal(self, metadata=()):
        # Sends nothing: sending on a stream that is already refused can fail in the client itself.
        call = reflection_pb2_grpc.ServerReflectionStub(self.channel).ServerReflectionInfo(
            metadata=metadata, timeout=patience(10)
        )
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call.read()
        return refused(failure.value)


@asynccontextmanager
async def opened(database, file, text):
    file.write_text(text)
    settings = server_settings(database.service_url, authenticator=Authenticator(file))
    async with running(settings) as service, grpc.aio.insecure_channel(service.target) as channel:
        yield Door(channel, file)
