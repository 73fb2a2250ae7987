"""Nodes of a Citus cluster are killed under load: which users are served then and afterwards."""

import os
from uuid import uuid4

import grpc
import pytest
from kit.citus import URL
from kit.citus_nodes import (
    coordinator_and_workers,
    needs_killable_citus,
    prepared_transactions,
    shards_of,
)
from kit.services import running, server_settings
from kit.storm import NO_FINAL_ANSWER, Storm, call, connected
from kit.waiting import eventually, patience

from credit_service.v1 import credit_service_pb2 as pb

pytestmark = [needs_killable_citus, pytest.mark.timeout(400)]


@pytest.fixture
async def cluster():
    """The coordinator and its workers, which all run again after the test."""
    nodes = await coordinator_and_workers(os.environ[URL])
    yield nodes
    for node in nodes:
        await node.start()


async def users_by_node(database, each=3):
    """Users of each node, the same number of each."""
    shards = await shards_of(database)
    users = [[] for _ in range(shards.map.node_count)]
    while any(len(found) < each for found in users):
        user_id = await database.user(500)
        found = users[shards.map.node_of(shards.map.shard_of(user_id))]
        if len(found) < each:
            found.append(user_id)
    return users


def spend(user_id):
    return pb.SpendCreditsRequest(user_id=str(user_id), amount=1, idempotency_key=uuid4().hex)


def code_of(answer):
    return answer.code() if isinstance(answer, grpc.aio.AioRpcError) else grpc.StatusCode.OK


async def test_while_a_worker_is_away_the_users_of_the_others_are_served(database, cluster):
    of_lost, of_kept = await users_by_node(database, 4)
    away_with_it, asked = of_lost.pop(), of_kept.pop()
    _, lost, _ = cluster
    async with (
        running(server_settings(database.service_url)) as service,
        connected(service.target) as stub,
    ):
        async with Storm([service.target], [*of_lost, *of_kept], seed=21) as storm:
            storm.seconds = 3.0
            await storm.more(100)
            await lost.kill()
            for _ in range(10):
                assert code_of(await call(stub, spend(asked))) is grpc.StatusCode.OK
                shown = await stub.GetUserCredit(
                    pb.GetUserCreditRequest(user_id=str(asked)), timeout=patience(5)
                )
                assert shown.credit.user_id == str(asked)
                assert code_of(await call(stub, spend(away_with_it))) in NO_FINAL_ANSWER
            away = storm.codes["UNAVAILABLE"]
            await eventually(lambda: storm.codes["UNAVAILABLE"] > away)
            await lost.start()
            await storm.more(100)
        assert code_of(await call(stub, spend(away_with_it))) is grpc.StatusCode.OK
        await storm.settle()
    # The storm knows nothing of the other calls.
    await database.execute("DELETE FROM auth.users WHERE id = ANY($1)", [away_with_it, asked])
    await storm.check(database)


class Purchases(Storm):
    """Callers that purchase, each payment once."""

    def _request(self, key, user_id):
        paid = pb.Payment(ref=key, amount_minor=100, currency="eur")
        return pb.PurchaseCreditsRequest(user_id=user_id, amount=7, payment=paid)


async def test_a_worker_killed_during_purchases_credits_each_payment_once(database, cluster):
    users = [user_id for found in await users_by_node(database, 6) for user_id in found]
    async with running(server_settings(database.service_url)) as service:
        async with Purchases([service.target], users, callers=24, seed=22) as storm:
            storm.seconds = 3.0
            for worker in (*cluster[1:], *cluster[1:]):
                await storm.more(60)
                await worker.kill()
                away = storm.codes["UNAVAILABLE"]
                await eventually(lambda away=away: storm.codes["UNAVAILABLE"] > away)
                await worker.start()
            await storm.more(100)
        await storm.settle()
    await storm.check(database)
    assert (
        await database.fetch(
            "SELECT 1 FROM credit_purchases GROUP BY payment_ref HAVING count(*) > 1"
        )
        == []
    )
    await eventually(lambda: all_are_finished(database, cluster), 60)


async def all_are_finished(database, cluster):
    """Whether no transaction waits between its two phases; Citus finishes them once a minute."""
    await database.execute("SELECT recover_prepared_transactions()")
    return not await prepared_transactions(database, [node.url for node in cluster])


async def test_a_coordinator_killed_under_load_serves_again_and_loses_nothing(database, cluster):
    users = [user_id for found in await users_by_node(database) for user_id in found]
    coordinator = cluster[0]
    async with running(server_settings(database.service_url)) as service:
        async with Storm([service.target], users, seed=23) as storm:
            storm.seconds = 3.0
            for _ in range(2):
                await storm.more(100)
                await coordinator.kill()
                away = storm.codes["UNAVAILABLE"]
                await eventually(lambda away=away: storm.codes["UNAVAILABLE"] > away)
                await coordinator.start()
            await storm.more(100)
        await storm.settle()
    await storm.check(database)
    await eventually(lambda: all_are_finished(database, cluster), 60)
