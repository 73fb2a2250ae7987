"""The comparisons of `check-config`, and the line that it prints for each problem."""

import time
from types import SimpleNamespace

import pytest
import trustme
from kit.bridge_commands import ran
from kit.callers import EVERY_ROLE, identity
from kit.services import running, server_settings
from kit.stripe_fakes import KEY, SECRET, fake_stripe

from credit_service.client import CreditClient
from credit_service.rpc.access import Authenticator
from credit_service.rpc.tls import ServerCertificate
from stripe_bridge import config_check
from stripe_bridge.catalog import Catalog, Policy
from stripe_bridge.stripe_api import stripe_client

pytestmark = pytest.mark.shared

PACKS = """
[[pack]]
id = "starter"
name = "100 credits"
credits = 100
price = "price_starter"
amount_minor = 900
currency = "eur"

[[price]]
lookup_key = "monthly"
credits = 500
"""


@pytest.fixture(scope="module")
async def fake():
    async with fake_stripe() as running_one:
        await running_one.price(900, id="price_starter", currency="eur")
        await running_one.price(
            500, lookup_key="monthly", currency="eur", recurring={"interval": "month"}
        )
        yield running_one


@pytest.fixture
def packs(tmp_path):
    file = tmp_path / "packs.toml"
    file.write_text(PACKS)
    return file


@pytest.fixture
async def guarded(database, tmp_path):
    """A service that knows its callers by their tokens."""
    callers = tmp_path / "callers.toml"
    callers.write_text(EVERY_ROLE)
    settings = server_settings(database.service_url, authenticator=Authenticator(callers))
    async with running(settings) as service:
        yield service


def checking(fake, packs, target, **changes):
    return ran(
        "check-config",
        **{
            "stripe_key": KEY,
            "stripe_address": fake.url,
            "webhook_secrets": f"test:{SECRET}",
            "catalog": str(packs),
            "credit_target": target,
            **changes,
        },
    )


async def test_settings_without_a_problem_are_confirmed_and_nothing_is_written(
    fake, packs, service, database
):
    before = await database.book()
    done = await checking(fake, packs, service.target)
    assert (done.returncode, done.stdout, done.stderr) == (0, "everything fits\n", "")
    assert await database.book() == before


async def test_each_difference_between_catalogue_and_stripe_is_a_line(fake, client):
    await fake.price(900, lookup_key="weekly", currency="eur", recurring={"interval": "week"})
    differs = "pack starter: price price_starter is 900 eur, and the catalogue shows"
    for old, new, line in (
        ("900", "950", f"{differs} 950 eur"),
        ("eur", "usd", f"{differs} 900 usd"),
        ("price_starter", "price_gone", "pack starter: stripe_object_missing"),
        ('price = "price_starter"', 'lookup_key = "none"', "no active price has the lookup key"),
        ('"monthly"', '"yearly"', "no active price has the lookup key yearly"),
        ('price = "price_starter"', 'lookup_key = "weekly"', "is recurring, and a pack is sold"),
    ):
        policy = Policy(catalog=Catalog.parse(PACKS.replace(old, new)))
        (found,) = [each async for each in config_check.problems(fake.sdk(), client, policy)]
        assert line in found


async def test_an_expiry_by_the_period_that_a_price_cannot_have_is_a_line(fake, client):
    await fake.price(900, lookup_key="yearly", currency="eur", recurring={"interval": "year"})
    await fake.price(900, id="price_once", currency="eur")
    for price, life, line in (
        ('lookup_key = "monthly"', "carry_over = 118", ""),
        ('lookup_key = "monthly"', "carry_over = 120", "a carry_over of 120, so its credits would"),
        ('lookup_key = "yearly"', "carry_over = 9", ""),
        ('lookup_key = "yearly"', "carry_over = 10", "longer than 3653 days, the maximum"),
        ('price = "price_once"', "", 'is sold once, so its credits cannot have expires = "period"'),
    ):
        plan = f'[[price]]\n{price}\ncredits = 5\nexpires = "period"\n{life}\n'
        policy = Policy(catalog=Catalog.parse(plan))
        found = [each async for each in config_check.problems(fake.sdk(), client, policy)]
        assert len(found) == bool(line)
        assert line in "".join(found)


async def test_every_problem_is_a_line_of_its_own(fake, packs, service):
    await fake.price(1, id="price_old", currency="eur", active=False)
    more = "".join(
        f'[[price]]\nprice = "{price}"\ncredits = 1\n'
        for price in ("price_gone", "price_gone_too", "price_old")
    )
    packs.write_text(PACKS + more)
    done = await checking(
        fake,
        packs,
        service.target,
        allowed_currencies="usd",
        max_credits_per_purchase="99",
    )
    assert done.returncode == 1
    assert "price price_old is not active" in done.stdout
    assert "Stripe does not know price_gone;" in done.stdout
    assert "Stripe does not know price_gone_too;" in done.stdout
    assert "more credits than STRIPE_BRIDGE_MAX_CREDITS_PER_PURCHASE allows" in done.stdout
    assert "sold in eur, which STRIPE_BRIDGE_ALLOWED_CURRENCIES lacks" in done.stdout


async def test_a_key_that_stripe_refuses_is_reported_for_every_right(fake, packs, service):
    done = await checking(fake, packs, service.target, stripe_key="rk_nobodys_hunter2")
    assert done.returncode == 1
    for right in ("Checkout Sessions", "Refunds", "Disputes", "Invoices", "Events"):
        assert f"Stripe's key may not read {right}: " in done.stdout


async def test_a_bridge_that_the_service_does_not_accept_is_reported(fake, packs, guarded):
    for credit_token in ({}, {"credit_token": "unheard-of"}):
        done = await checking(fake, packs, guarded.target, **credit_token)
        assert done.returncode == 1
        assert "the credit service does not accept the bridge: " in done.stdout


async def test_the_bridge_is_accepted_by_its_certificate_or_its_token_over_tls(
    fake, database, tmp_path
):
    authority = trustme.CA()
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "server", "key", "ours", "our_key")}
    authority.cert_pem.write_to_path(str(files["ca"]))
    for name, chain, key in (
        ("127.0.0.1", files["server"], files["key"]),
        ("bridge.credits.example", files["ours"], files["our_key"]),
    ):
        made = authority.issue_cert(name)
        made.cert_chain_pems[0].write_to_path(str(chain))
        made.private_key_pem.write_to_path(str(key))
    callers = tmp_path / "callers.toml"
    callers.write_text(
        identity("by-token", "bridge", "a-token")
        + '[[identity]]\nname = "by-certificate"\nrole = "bridge"\n'
        + 'certificate = "bridge.credits.example"\n'
    )
    access = {"stripe_key": KEY, "stripe_address": fake.url, "webhook_secrets": f"test:{SECRET}"}
    for client_ca, known in (
        (None, {"credit_token": "a-token"}),
        (
            files["ca"],
            {
                "credit_tls_certificate": str(files["ours"]),
                "credit_tls_key": str(files["our_key"]),
            },
        ),
    ):
        settings = server_settings(
            database.service_url,
            authenticator=Authenticator(callers),
            certificate=ServerCertificate(files["server"], files["key"], client_ca),
        )
        async with running(settings) as service:
            done = await ran(
                "check-config",
                credit_target=service.target,
                credit_tls_ca=str(files["ca"]),
                **access,
                **known,
            )
        assert (done.returncode, done.stdout) == (0, "everything fits\n")


async def problems(stripe, credit_service):
    policy = Policy(catalog=Catalog())
    return [each async for each in config_check.problems(stripe, credit_service, policy)]


async def test_a_server_that_does_not_answer_is_reported():
    async with (
        stripe_client(KEY, address="http://127.0.0.1:9", retries=0) as stripe,
        CreditClient("127.0.0.1:9", deadline_seconds=0.2) as credit_service,
    ):
        stripe_away, credits_away = await problems(stripe, credit_service)
    assert "no usable answer from Stripe" in stripe_away
    assert "the credit service gives no answer" in credits_away


async def test_a_bridge_without_a_secret_is_reported(fake, service):
    access = {"stripe_key": KEY, "stripe_address": fake.url, "credit_target": service.target}
    done = await ran("check-config", **access)
    line = "STRIPE_BRIDGE_WEBHOOK_SECRETS is not set, so no event is accepted\n"
    assert (done.returncode, done.stdout) == (1, line)


@pytest.mark.parametrize(("seconds", "way"), [(1000, "ahead of"), (-1000, "behind"), (5, None)])
async def test_a_clock_that_differs_from_stripes_is_reported(
    fake, client, monkeypatch, seconds, way
):
    monkeypatch.setattr(config_check, "time", SimpleNamespace(time=lambda: time.time() + seconds))
    found = await problems(fake.sdk(), client)
    assert [way in each for each in found] == ([True] if way else [])
    assert all("set it by NTP" in each for each in found)
