"""docs/stripe.md: its commands run as printed, against a fake Stripe and a running service."""

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest
from kit.documents import ROOT, Shell, section, snippets
from kit.services import running, server_settings
from kit.stripe_fakes import KEY, bridge_process, bridge_url, fake_stripe
from prometheus_client import Counter, Gauge, Histogram

from credit_service.rpc.access import Authenticator
from stripe_bridge import config, metrics
from stripe_bridge.cli import app
from stripe_bridge.settle import EVENT_TYPES

STRIPE = ROOT / "docs" / "stripe.md"
SET_UP = "Setting it up"
USER_ID = "3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b"


def test_the_settings_and_commands_it_names_exist():
    text = STRIPE.read_text() + (ROOT / "README.md").read_text()
    named = set(re.findall(r"\bSTRIPE_BRIDGE_[A-Z_0-9]*[A-Z0-9]\b", text))
    assert named <= {config.variable(name) for name in config.Settings.model_fields}
    assert set(re.findall(r"(?:`|^|/)stripe-bridge ([a-z][a-z-]+)", text, re.MULTILINE)) <= set(app)


def test_its_table_of_metrics_lists_the_bridge_s_metrics():
    rows = section(STRIPE, "Running it").partition("| metric |")[2]
    exported = {"stripe_bridge_build_info"} | {
        metric._name + ("_total" if isinstance(metric, Counter) else "")
        for metric in vars(metrics).values()
        if isinstance(metric, (Counter, Gauge, Histogram))
    }
    assert set(re.findall(r"`(stripe_bridge_\w+)`", rows)) == exported | {
        "stripe_bridge_build_info"
    }
    documented = set(re.findall(r"`(stripe_bridge_\w+)`", STRIPE.read_text()))
    assert documented <= exported


def test_its_table_of_events_lists_the_events_that_the_bridge_handles():
    named = set()
    for row in section(STRIPE, "What becomes of an event").splitlines():
        family = ""
        for name in re.findall(r"`([a-z_.]+)`", row.partition("|")[2].partition("|")[0]):
            named.add(family + name if name.startswith(".") else name)
            family = name.rpartition(".")[0] if not name.startswith(".") else family
    assert named == set(EVENT_TYPES)


async def test_the_printed_commands_set_up_the_bridge_and_sell(database, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    token, catalogue, exports, endpoint, secrets, check, serve = snippets(
        STRIPE, SET_UP, "sh", "toml"
    )
    packs, checkout = snippets(STRIPE, "Selling credit packs through the bridge", "sh")[0].split(
        "\n", 1
    )
    await database.execute(f"INSERT INTO auth.users (id) VALUES ('{USER_ID}')")
    identities, catalogue_file = tmp_path / "callers.toml", tmp_path / "catalog.toml"
    catalogue_file.write_text(catalogue)
    shell = Shell(tmp_path, {})
    made = shell.run(token).splitlines()
    bearer = next(line for line in made if re.fullmatch(r"[\w-]{43}", line))
    identities.write_text("\n".join(line for line in made if line != bearer))
    settings = server_settings(database.service_url, authenticator=Authenticator(identities))
    async with fake_stripe() as fake, running(settings) as service:
        await fake.price(lookup_key="credits_100", unit_amount=900, currency="eur")
        await fake.price(1900, lookup_key="studio_monthly", recurring={"interval": "month"})
        shell.environment["STRIPE_BRIDGE_STRIPE_ADDRESS"] = fake.url
        shell.swaps = {
            "127.0.0.1:50051": service.target,
            "the-token-from-above": bearer,
            "rk_live_...": KEY,
            "/etc/credits/catalog.toml": str(catalogue_file),
        }
        # The service answers in this event loop, so the callers run in other processes.
        await run(shell, exports)
        said = await run(shell, endpoint)
        name, _, secret = said.splitlines()[0].partition("=")
        assert name == "STRIPE_BRIDGE_WEBHOOK_SECRETS"
        assert re.fullmatch(r"(live|test):whsec_\w+", secret)
        shell.swaps["live:whsec_..."] = secret
        await run(shell, secrets)
        assert "everything fits" in await run(shell, check)
        assert serve == "stripe-bridge serve\n"
        (reconcile,) = snippets(STRIPE, "Nothing is lost", "sh")
        assert "0 conflicts, 0 unresolved" in await run(shell, reconcile)
        ours = {
            name.removeprefix("STRIPE_BRIDGE_").lower(): value
            for name, value in shell.environment.items()
            if name.startswith("STRIPE_BRIDGE_")
        }
        digest = (await run(shell, "printf %s secret | sha256sum")).split()[0]
        target = ours.pop("credit_target")
        with bridge_process(
            ours.pop("stripe_address"), target, **ours, checkout_token_sha256=digest
        ) as bridge:
            shell.swaps["http://127.0.0.1:8081"] = bridge_url(bridge)
            shell.environment["CHECKOUT_TOKEN"] = "secret"
            (pack,) = json.loads(await run(shell, packs))["packs"]
            assert (pack["id"], pack["credits"], pack["amount_minor"]) == ("starter", 100, 900)
            opened = json.loads(await run(shell, checkout))
            assert opened.keys() == {"id", "url", "expires_at"}
            assert json.loads(await run(shell, checkout)) == opened


async def run(shell, snippet):
    return await asyncio.to_thread(shell.run, snippet)


async def test_the_metadata_that_an_app_sets_gives_its_credits(database):
    (snippet,) = snippets(STRIPE, "An app that already uses Stripe Checkout", "python")
    await database.execute(f"INSERT INTO auth.users (id) VALUES ('{USER_ID}')")
    async with fake_stripe() as fake, running(server_settings(database.service_url)) as service:
        client = await service.client()
        price = await fake.price()
        code = snippet.replace("price_...", price["id"]).replace(
            "session = stripe_client.v1.checkout.sessions.create(",
            "made = stripe_client.v1.checkout.sessions.create_async(",
        )
        names = {"stripe_client": fake.sdk()}
        exec(code, names)
        session = await names["made"]
        with bridge_process(fake.url, service.target) as bridge:
            bridge_url(bridge)
            await fake.pay_session(session.id)
            with bridge_process(fake.url, service.target, "replay", session.id) as replay:
                assert await asyncio.to_thread(replay.wait) == 0
        assert (await client.get_user_credit(USER_ID)).balance == 100


def test_the_reasons_it_explains_are_reasons_of_the_bridge():
    code = "".join(path.read_text() for path in Path(config.__file__).parent.glob("*.py"))
    code += (ROOT / "credit_service" / "errors.py").read_text().lower()
    alerts = section(STRIPE, "What it answers, and when a person must act")
    for row in re.findall(r"^\| (`[a-z_]+`(?:, `[a-z_]+`)*) \|", alerts, re.MULTILINE):
        for reason in re.findall(r"`(\w+)`", row):
            assert f'"{reason}"' in code, reason
