"""Top-ups for operators: `stripe-bridge top-ups`, `check-config`, settings and metrics."""

import pytest
from kit.bridge_commands import ran
from kit.bridge_stage import counted
from kit.stripe_fakes import KEY, SECRET
from kit.top_up_stage import DECLINING, POLICY, RETURN_URL, pack_with
from kit.waiting import eventually

from stripe_bridge import config_check
from stripe_bridge.catalog import Catalog, Policy


@pytest.fixture
def catalog(tmp_path):
    file = tmp_path / "packs.toml"
    file.write_text(pack_with())
    return file


def settings(stage, catalog, **changes):
    return {
        "stripe_key": KEY,
        "stripe_address": stage.fake.url,
        "webhook_secrets": f"test:{SECRET}",
        "credit_target": stage.target,
        "catalog": str(catalog),
        "top_up_seconds": "10",
        "top_up_return_url": RETURN_URL,
        **changes,
    }


async def test_the_command_lists_open_requests_and_charges_them_when_asked(stage, catalog):
    user, declining = await stage.user(), await stage.user(DECLINING)
    asked, declined = await stage.asked(user), await stage.asked(declining)
    shown = await ran("top-ups", **settings(stage, catalog))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert set(shown.stdout.splitlines()) == {
        f"{asked.id} {user} starter, 0 failed: no payment yet",
        f"{declined.id} {declining} starter, 0 failed: no payment yet",
    }
    charged = await ran("top-ups", "--charge", **settings(stage, catalog))
    assert charged.returncode == 0
    done = await stage.request(user)
    paid = done.payment_ref.removeprefix("stripe:")
    assert f"{asked.id} {user} starter, 0 failed: {paid}: credited purchase" in charged.stdout
    assert "try_again generic_decline" in charged.stdout
    left = await ran("top-ups", **settings(stage, catalog))
    assert left.stdout.endswith("generic_decline\n")
    assert len(left.stdout.splitlines()) == 1


async def test_the_command_ends_with_1_if_a_request_needs_a_person(stage, catalog):
    await stage.asked(await stage.user())
    await stage.fake.api_faults({"status": 403, "code": "permission", "method": "POST"})
    done = await ran("top-ups", "--charge", **settings(stage, catalog))
    assert done.returncode == 1
    assert "unresolved stripe_refuses" in done.stdout


async def test_the_command_charges_nothing_without_the_settings(stage, catalog):
    done = await ran("top-ups", "--charge", **settings(stage, catalog, top_up_seconds="0"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "STRIPE_BRIDGE_TOP_UP_SECONDS" in done.stderr


async def problems(stage, policy=POLICY):
    found = config_check.problems(stage.sdk, stage.client, policy, top_ups=True)
    return [line async for line in found if "top-ups" in line]


async def test_check_config_reports_nothing_if_everything_fits(stage):
    assert await problems(stage) == []


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("payment_methods", "read PaymentMethods"),
        ("customers", "write Customers"),
        ("payment_intents", "write PaymentIntents"),
        ("checkout/sessions", "write Checkout Sessions"),
    ],
)
async def test_check_config_names_the_right_that_the_key_lacks(stage, path, right):
    method = "GET" if path == "payment_methods" else "POST"
    await stage.fake.api_faults(
        {"path": path, "method": method, "status": 403, "code": "permission"}
    )
    [line] = await problems(stage)
    assert line.startswith(f"top-ups: Stripe's key may not {right}")


async def test_check_config_names_requested_packs_that_cannot_be_charged(stage):
    for _ in range(2):
        await stage.asked(await stage.user())
    other = Catalog.parse(pack_with().replace("starter", "other"))
    lines = await problems(stage, Policy(catalog=other))
    assert any(
        line.startswith("top-ups: pack starter cannot be charged (unknown_pack)") for line in lines
    )
    nothing = "top-ups: the catalogue has no pack, so that nothing can be charged"
    assert nothing in await problems(stage, Policy(catalog=Catalog()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"top_up_return_url": ""}, "TOP_UP_RETURN_URL"),
        ({"top_up_return_url": "http://app.example.com"}, "must be https"),
        ({"top_up_return_url": "app.example.com"}, "must be a URL"),
        ({"top_up_seconds": "-1"}, "TOP_UP_SECONDS"),
        ({"top_up_retry_hours": "-1"}, "TOP_UP_RETRY_HOURS"),
    ],
)
async def test_an_unusable_setting_stops_the_start(stage, catalog, changes, words):
    done = await ran("settings", **settings(stage, catalog, **changes))
    assert done.returncode == 2
    assert words in done.stderr


async def test_charges_are_counted(stage):
    declining = await stage.user(DECLINING)
    before = counted("top_ups", outcome="try_again", reason="generic_decline")
    await stage.asked(declining)
    async with stage.charging():

        async def is_counted():
            return counted("top_ups", outcome="try_again", reason="generic_decline") > before

        await eventually(is_counted)
