"""Top-ups through two server processes on one book: one request, one payment, one purchase."""

import asyncio
import signal

import pytest
from kit.fault_proxy import COMMIT, Kind
from kit.programs import process
from kit.requests import payment

from credit_service.client import CreditClient
from credit_service.errors import CreditError, OutcomeUnknown
from credit_service.v1 import credit_service_pb2 as pb

ROUNDS = 10
POLICY = pb.TopUp(below=20, pack="hundred", charges_per_month=1000)


async def all_of(client, user_id):
    return [each async for each in client.list_top_ups(user_id, open_only=False)]


async def at_once(*calls):
    """The answers to calls that are made at the same instant; a refusal is an answer."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        assert isinstance(answer, CreditError) or not isinstance(answer, BaseException), answer
    return answers


async def test_two_processes_at_the_threshold_make_one_request_with_one_payment(database):
    url = database.service_url
    with (
        process("serve", CREDIT_DATABASE_URL=url) as first,
        process("serve", CREDIT_DATABASE_URL=url) as second,
    ):
        targets = [f"127.0.0.1:{server.wait_until_listening()}" for server in (first, second)]
        async with CreditClient(targets[0]) as one, CreditClient(targets[1]) as two:
            for turn in range(ROUNDS):
                user_id = await database.user(30)
                await one.set_account_policy(user_id, top_up=POLICY)
                both = (one, two) * 3
                await at_once(*(client.spend_credits(user_id, amount=4) for client in both))
                (request,) = await all_of(one, user_id)
                assert request.state == pb.TOP_UP_STATE_OPEN

                refs = [f"pi_{place}_{user_id}" for place in range(2)]
                noted = await at_once(
                    *(
                        client.note_top_up(user_id, request.id, ref)
                        for client, ref in zip(both, refs, strict=False)
                    )
                )
                assert [type(each).__name__ for each in noted].count("NoteTopUpResponse") == 1
                (request,) = await all_of(two, user_id)
                assert request.payment_ref in refs
                bought = payment(request.payment_ref)
                answers = await at_once(
                    one.purchase_credits(user_id, 100, payment=bought),
                    two.purchase_credits(user_id, 100, payment=bought),
                    one.note_top_up(user_id, request.id, request.payment_ref),
                    two.fail_top_up(
                        user_id,
                        request.id,
                        1,
                        reason="declined",
                        failure=pb.TOP_UP_FAILURE_GIVEN_UP,
                        payment_ref=request.payment_ref,
                    ),
                )
                assert sum(answer.replayed for answer in answers[:2]) == 1
                (request,) = await all_of(two, user_id)
                assert request.state == pb.TOP_UP_STATE_SUCCEEDED, (turn, answers)
    assert not await database.faults()


@pytest.mark.parametrize(
    ("kind", "happened"), [(Kind.HOLD, False), (Kind.SWALLOW, True)], ids=["before", "after"]
)
@pytest.mark.parametrize("step", ["ask", "note", "purchase"])
async def test_a_service_killed_around_a_commit_leaves_one_request(
    database, proxy, step, kind, happened
):
    user_id = await database.user(30)
    with (
        process("serve", CREDIT_DATABASE_URL=proxy.url) as doomed,
        process("serve", CREDIT_DATABASE_URL=database.service_url) as other,
    ):
        targets = [
            f"127.0.0.1:{await asyncio.to_thread(server.wait_until_listening)}"
            for server in (doomed, other)
        ]
        async with CreditClient(targets[0]) as one, CreditClient(targets[1]) as two:
            await two.set_account_policy(user_id, top_up=POLICY)
            ref = f"pi_{user_id}"

            async def ask(client):
                await client.spend_credits(user_id, amount=15, idempotency_key="spend")

            async def note(client):
                (request,) = await all_of(two, user_id)
                await client.note_top_up(user_id, request.id, ref)

            async def purchase(client):
                await client.purchase_credits(user_id, 100, payment=payment(ref))

            steps = {"ask": ask, "note": note, "purchase": purchase}
            for name, make in steps.items():
                if name == step:
                    break
                await make(two)
            before = [each.state for each in await all_of(two, user_id)]
            fault = proxy.on(COMMIT, kind)
            lost = asyncio.create_task(steps[step](one))
            await fault.met.wait()
            doomed.signal(signal.SIGKILL)
            await asyncio.to_thread(doomed.wait)
            proxy.cut_all()
            with pytest.raises(OutcomeUnknown):
                await lost
            proxy.forget()
            after = await all_of(two, user_id)
            if not happened:
                assert [each.state for each in after] == before
            reached = False
            for name, make in steps.items():
                reached = reached or name == step
                if reached:
                    await make(two)
            (request,) = await all_of(two, user_id)
            assert (request.state, request.payment_ref) == (pb.TOP_UP_STATE_SUCCEEDED, ref)
            assert (await two.get_user_credit(user_id)).balance == 115
    assert not await database.faults()
