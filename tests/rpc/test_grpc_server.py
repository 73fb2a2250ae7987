"""How the server waits for calls."""

import asyncio

from kit.services import running, server_settings

from credit_service.v1 import credit_service_pb2 as pb


def waits():
    """The tasks in which gRPC waits for the next call."""
    return {
        task
        for task in asyncio.all_tasks()
        if task.get_coro().__qualname__.startswith("AioServer._request_")
    }


async def test_one_task_waits_for_calls_however_many_methods_there_are(database):
    before = waits()
    async with running(server_settings(database.service_url)) as service:
        client = await service.client()
        await client.list_prices()
        assert len(waits() - before) == 1
    assert len(pb.DESCRIPTOR.services_by_name["CreditService"].methods) > 1
