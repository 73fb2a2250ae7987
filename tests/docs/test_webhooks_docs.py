"""docs/webhooks.md: the file of endpoints, the event and the commands are as printed."""

import asyncio
import json
import shlex

from kit.command_line import ran
from kit.documents import snippets
from kit.paths import ROOT
from kit.receivers import SECRET, receiver
from kit.relays import endpoint, relaying, write_endpoints
from kit.services import running, server_settings
from kit.waiting import eventually

from credit_service.relay.endpoints import EndpointsFile

WEBHOOKS = ROOT / "docs" / "webhooks.md"


def test_the_printed_file_of_endpoints_can_be_used(tmp_path, monkeypatch):
    (printed,) = snippets(WEBHOOKS, "Endpoints", "toml")
    monkeypatch.setenv("BILLING_WEBHOOK_SECRET", SECRET)
    for name in ("warehouse.secret", "warehouse.next"):
        (tmp_path / name).write_text(SECRET)
    file = tmp_path / "endpoints.toml"
    file.write_text(printed)
    endpoints = EndpointsFile(file, private=False).endpoints
    assert endpoints.keys() == {"billing", "warehouse"}
    assert endpoints["billing"].types == {"entry.purchase", "policy.changed"}
    assert endpoints["warehouse"].from_beginning
    assert len(endpoints["warehouse"].secrets) == 2


async def test_the_printed_event_has_the_fields_of_a_real_one_and_the_commands_run(
    database, tmp_path
):
    (printed,) = snippets(WEBHOOKS, "Events", "json")
    (commands,) = snippets(WEBHOOKS, "When an endpoint fails", "sh")
    file = tmp_path / "endpoints.toml"
    async with running(server_settings(database.service_url)) as service, receiver() as hook:
        user_id = await database.user(100)
        client = await service.client()
        await client.spend_credits(
            user_id, operation="stem_separation", reference="job 7", idempotency_key="0b7c"
        )
        write_endpoints(file, endpoint("billing", hook.port))
        async with relaying(database, file):
            await eventually(lambda: len(hook.taken) == 2)
        shown, real = json.loads(printed), hook.taken[1].event
        assert list(shown) == list(real)
        # The version of the price list differs in every configuration.
        assert shown["data"].keys() == real["data"].keys() - {"price_version"}
        for name in ("type", "amount", "balance_change", "balance_after", "reference", "seq"):
            assert shown["data"][name] == real["data"][name]
        for line in commands.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "credit-service"
            done = await asyncio.to_thread(
                ran,
                *arguments,
                CREDIT_DATABASE_URL=database.service_url,
                CREDIT_WEBHOOKS=str(file),
                CREDIT_WEBHOOKS_PRIVATE="true",
            )
            assert done.returncode == 0, done.stderr
    assert hook.taken[-1].event["type"] == "relay.test"
