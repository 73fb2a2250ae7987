"""Batches that meet a full lane, a lost COMMIT, a dead server, another process."""

import asyncio
import signal
from contextlib import ExitStack
from uuid import UUID

import pytest
from kit.batches import ATOMIC, INDEPENDENT, MODES, errors, item
from kit.fault_proxy import COMMIT, Kind
from kit.programs import free_port, process
from kit.services import running, server_settings
from kit.waiting import eventually, patience
from prometheus_client import REGISTRY

from credit_service.client import CreditClient, item_error
from credit_service.errors import BatchAborted, InsufficientCredits, OutcomeUnknown


async def test_a_full_lane_refuses_the_items_it_cannot_take(database):
    user_id = await database.user(100)
    settings = server_settings(database.service_url, queue_limit=5, lanes=1)
    async with running(settings) as service:
        client = await service.client()
        items = [item(user_id, 1, f"spend:{n}:1") for n in range(8)]
        results = await client.batch_spend_credits(items, mode=INDEPENDENT)
        reasons = [getattr(item_error(result), "reason", None) for result in results]
        assert reasons == [None] * 5 + ["OVERLOADED"] * 3
        again = await client.batch_spend_credits(items[3:], mode=INDEPENDENT)
        assert [result.replayed for result in again] == [True] * 2 + [False] * 3
    assert not await database.faults()


async def test_items_that_have_not_begun_are_dropped_when_the_caller_leaves(database, proxy):
    user_id = await database.user(100)

    def abandoned():
        labels = {"method": "BatchSpendCredits", "code": "CANCELLED", "reason": ""}
        return REGISTRY.get_sample_value("credit_calls_total", labels) or 0

    async with running(server_settings(proxy.url, lanes=1, batch_limit=5)) as service:
        client = await service.client()
        held, before = proxy.on(COMMIT, Kind.HOLD), abandoned()
        items = [item(user_id) for _ in range(20)]
        call = asyncio.create_task(client.batch_spend_credits(items, mode=INDEPENDENT))
        await held.met.wait()
        call.cancel()
        await eventually(lambda: abandoned() > before)
        held.release()
        await client.spend_credits(user_id, amount=1)
        assert (await client.get_user_credit(user_id)).balance == 100 - 5 - 1
    assert not await database.faults()


async def test_items_that_two_processes_write_are_in_the_book_once(database):
    users = [await database.user(50) for _ in range(3)]
    with ExitStack() as stack:
        started = [
            stack.enter_context(process("serve", CREDIT_DATABASE_URL=database.service_url))
            for _ in range(2)
        ]
        targets = [f"127.0.0.1:{server.wait_until_listening()}" for server in started]
        async with CreditClient(targets[0]) as one, CreditClient(targets[1]) as two:
            same = [item(users[n % 3], 1, f"same:{n}") for n in range(90)]
            batches = [
                same,
                same[::-1],
                [item(users[n % 3], 1, f"one:{n}") for n in range(60)],
                [item(users[n % 3], 1, f"two:{n}") for n in range(60)],
            ]
            answers = await asyncio.gather(
                *(
                    client.batch_spend_credits(items, mode=INDEPENDENT)
                    for items in batches
                    for client in (one, two)
                ),
                *(
                    client.batch_spend_credits(
                        [item(user_id, 2, f"atomic:{part}") for part in range(5)], mode=ATOMIC
                    )
                    for user_id in users
                    for client in (one, two)
                ),
            )
    assert {error for results in answers for error in errors(results)} <= {
        None,
        InsufficientCredits,
        BatchAborted,
    }
    for results in answers[8:]:
        assert errors(results) == [None] * 5 or set(errors(results)) == {
            BatchAborted,
            InsufficientCredits,
        }
    rows = await database.fetch("SELECT balance FROM user_credits")
    assert [row[0] for row in rows] == [0] * 3 or all(row[0] < 2 for row in rows)
    assert not await database.faults()


async def test_a_batch_whose_commit_was_lost_is_written_once(database, proxy):
    user_id = await database.user(100)
    async with running(server_settings(proxy.url, lanes=1)) as service:
        client = await service.client(deadline_seconds=patience(15))
        items = [item(user_id, 1, f"spend:{n}:1") for n in range(10)]
        fault = proxy.on(COMMIT, Kind.SWALLOW)
        results = await client.batch_spend_credits(items, mode=ATOMIC)
        assert fault.met.is_set()
    assert errors(results) == [None] * 10
    assert [result.replayed for result in results] == [False] * 10
    assert not await database.faults()


@MODES
async def test_a_batch_cut_by_kill_9_is_repeated_with_its_keys(database, proxy, mode):
    user_id = await database.user(300)
    items = [item(user_id, 1, f"spend:{n}:1") for n in range(200)]
    port = free_port()
    environment = {
        "CREDIT_DATABASE_URL": proxy.url,
        "CREDIT_LISTEN": f"127.0.0.1:{port}",
        "CREDIT_LANE_BATCH": "64",
    }
    with process("serve", **environment) as server:
        await asyncio.to_thread(server.wait_until_listening)
        async with CreditClient(f"127.0.0.1:{port}", deadline_seconds=patience(60)) as client:
            # Independent items take four transactions; the second dies with its COMMIT on the way.
            fault = proxy.on(COMMIT, Kind.CUT_AFTER, nth=2 if mode == INDEPENDENT else 1)
            call = asyncio.create_task(client.batch_spend_credits(items, mode=mode))
            await eventually(fault.met.is_set)
            server.signal(signal.SIGKILL)
            await asyncio.to_thread(server.wait)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
    proxy.forget()
    with process("serve", **environment) as server:
        await asyncio.to_thread(server.wait_until_listening)
        async with CreditClient(f"127.0.0.1:{port}", deadline_seconds=patience(60)) as client:
            results = await client.batch_spend_credits(items, mode=mode)
            assert errors(results) == [None] * 200
            assert any(result.replayed for result in results)
            again = await client.batch_spend_credits(items, mode=mode)
            assert [r.transaction for r in again] == [r.transaction for r in results]
            assert (await client.get_user_credit(user_id)).balance == 100
    assert not await database.faults()


async def test_a_batch_without_an_answer_has_an_unknown_outcome(database, proxy):
    user_id = await database.user(10)
    async with running(server_settings(proxy.url)) as service:
        client = await service.client()
        proxy.cut_all()
        proxy.black_hole()
        with pytest.raises(OutcomeUnknown):
            await client.batch_spend_credits([item(user_id, 1, "k")], mode=ATOMIC)
        proxy.heal()
        results = await eventually(lambda: _paid(client, user_id))
    assert errors(results) == [None]
    assert UUID(results[0].transaction.user_id) == user_id
    assert not await database.faults()


async def _paid(client, user_id):
    try:
        return await client.batch_spend_credits([item(user_id, 1, "k")], mode=ATOMIC)
    except OutcomeUnknown:
        return None
