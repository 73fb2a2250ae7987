"""Pages while a server is away, late, stopped or hostile: they show only what they know."""

import re
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from kit.browser_pages import balance, details, opened
from kit.programs import free_port
from kit.services import running, server_settings
from kit.waiting import eventually, patience
from kit.web_pages import Site, running_site
from kit.web_shops import running_shop
from playwright.async_api import expect

pytestmark = pytest.mark.shared


async def shown(page):
    """Every balance that the page has shown so far."""
    return set(await page.evaluate("shown"))


UNKNOWN = "\u2013"
AS_OF = re.compile(r"^as of \d{1,2}:\d\d")


async def test_a_restart_of_the_service_is_shown_as_an_old_balance_and_then_as_a_new_one(
    chromium, database
):
    user_id = await database.user(100)
    site = Site()
    site.signs_in(user_id)
    target = f"127.0.0.1:{free_port()}"
    settings = server_settings(database.service_url, drain_seconds=0.1)
    settings = replace(settings, listen=target)
    async with AsyncExitStack() as stack:
        async with running(settings):
            url = await stack.enter_async_context(running_site(site, target))
            page = await stack.enter_async_context(opened(chromium, url))
            await expect(balance(page)).to_have_text("100")
            await expect(details(page)).to_have_text("")
        await expect(details(page)).to_have_text(AS_OF)
        await expect(balance(page)).to_have_text("100")
        async with running(settings) as service:
            await expect(details(page)).to_have_text("")
            await (await service.client()).spend_credits(user_id, amount=1)
            await expect(balance(page)).to_have_text("99")
            assert await shown(page) <= {UNKNOWN, "100", "99"}


async def test_a_page_opened_while_the_service_is_away_shows_no_number(chromium, database):
    user_id = await database.user(100)
    site = Site()
    site.signs_in(user_id)
    target = f"127.0.0.1:{free_port()}"
    settings = server_settings(database.service_url)
    async with running_site(site, target) as url, opened(chromium, url) as page:
        await expect(details(page)).to_have_text("Not available right now.")
        await expect(balance(page)).to_have_text(UNKNOWN)
        await expect(balance(page)).to_have_attribute("aria-busy", "true")
        async with running(replace(settings, listen=target)):
            await expect(balance(page)).to_have_text("100")
            await expect(page.locator("credits-cost")).to_contain_text("25 credits")
            assert await shown(page) <= {UNKNOWN, "100"}


async def test_a_restart_of_the_app_is_shown_and_the_page_connects_again(
    chromium, service, database, client
):
    user_id, port = await database.user(100), free_port()
    site = Site()
    site.signs_in(user_id)
    async with AsyncExitStack() as stack:
        async with running_site(site, service.target, port=port) as url:
            page = await stack.enter_async_context(opened(chromium, url))
            await expect(balance(page)).to_have_text("100")
        await expect(details(page)).to_have_text(AS_OF)
        await expect(balance(page)).to_have_text("100")
        await client.spend_credits(user_id, amount=1)
        async with running_site(site, service.target, port=port):
            await expect(balance(page)).to_have_text("99")
            await expect(details(page)).to_have_text("")


async def test_offline_and_online(chromium, service, database, client):
    user_id = await database.user(100)
    site = Site()
    site.signs_in(user_id)
    async with running_site(site, service.target) as url, opened(chromium, url) as page:
        await expect(balance(page)).to_have_text("100")
        await page.context.set_offline(True)
        await expect(details(page)).to_have_text(AS_OF)
        await client.spend_credits(user_id, amount=1)
        await expect(balance(page)).to_have_text("100")
        await page.context.set_offline(False)
        await expect(balance(page)).to_have_text("99")
        await expect(details(page)).to_have_text("")


async def test_elements_that_could_not_be_read_are_read_again_after_an_outage(
    chromium, service, database, client
):
    user_id = await database.user(100)
    await client.spend_credits(user_id, operation="render")
    site = Site()
    site.signs_in(user_id)
    async with running_site(site, service.target) as url, opened(chromium, url) as page:
        await expect(page.locator("credits-history [part=row]")).to_have_count(2)
        await page.route(
            re.compile("/credits/(quotes|packs|transactions|usage)"), lambda route: route.abort()
        )
        await page.reload()
        parts = ("cost", "packs", "history", "usage")
        for part in parts:
            element = page.locator(f"credits-{part}")
            await expect(element).to_contain_text("Not available right now.")
        await page.unroute_all()
        await page.context.set_offline(True)
        await expect(details(page)).to_have_text(AS_OF)
        await page.context.set_offline(False)
        for part in parts:
            element = page.locator(f"credits-{part}")
            await expect(element).not_to_contain_text("Not available right now.")
        await expect(page.locator("credits-history [part=row]")).to_have_count(2)
        await expect(page.locator("credits-usage svg")).to_be_visible()


def soon():
    """The expiry of a token whose stream ends in a moment: 5 s before the token."""
    return time.time() + 5 + patience(0.5)


async def sign_in_until(page, site, user_id, expires_at):
    """Gives the open page another token."""
    site.signs_in(user_id, expires_at)
    await page.evaluate("document.querySelector('credits-provider').reset()")


async def test_a_token_that_is_about_to_expire_is_renewed_without_a_trace_on_the_page(
    chromium, service, database, client
):
    user_id = await database.user(100)
    site = Site(fresh_token=f"{user_id}")
    site.signs_in(user_id)
    async with running_site(site, service.target) as url, opened(chromium, url) as page:
        await expect(balance(page)).to_have_text("100")
        await page.evaluate(
            "document.addEventListener('credits-signed-out', () => shown.push('signed out'))"
        )
        await sign_in_until(page, site, user_id, soon())
        await expect(balance(page)).to_have_text("100")
        await eventually(lambda: site.renewals)
        await client.spend_credits(user_id, amount=1)
        await expect(balance(page)).to_have_text("99")
        assert await shown(page) <= {UNKNOWN, "100", "99"}


async def test_an_expired_token_is_renewed_once_by_the_call_that_notices(
    chromium, service, database, client
):
    user_id = await database.user(100)
    for _ in range(3):
        await client.spend_credits(user_id, operation="render")
    site = Site(fresh_token=f"{user_id}")
    site.signs_in(user_id)
    async with running_site(site, service.target) as url, opened(chromium, url) as page:
        history = page.locator("credits-history")
        await expect(history.locator("[part=row]")).to_have_count(2)
        site.signs_in(user_id, time.time() - 60)
        await history.get_by_role("button", name="Show more").click()
        await expect(history.locator("[part=row]")).to_have_count(4)
        assert site.renewals == 1


async def test_a_token_that_cannot_be_renewed_signs_the_page_out(chromium, service, database):
    user_id = await database.user(100)
    site = Site()
    site.signs_in(user_id)
    async with running_site(site, service.target) as url, opened(chromium, url) as page:
        await expect(balance(page)).to_have_text("100")
        site.fresh_token = ""
        await sign_in_until(page, site, user_id, soon())
        await expect(details(page)).to_have_text("Sign in to see your credits.")
        await expect(balance(page)).to_have_text(UNKNOWN)
        # Nothing of the user is left on the page.
        await expect(page.locator("credits-history")).to_have_text("Sign in to see your credits.")
        assert "100" not in await page.locator("body").inner_text()
        other = await database.user(7)
        await sign_in_until(page, site, other, None)
        await expect(balance(page)).to_have_text("7")


async def test_debt_and_a_frozen_account_are_shown_as_such(chromium, service, database, client):
    user_id = await database.user(10)
    await client.set_account_policy(user_id, min_balance=-50)
    await client.spend_credits(user_id, amount=30)
    await client.set_account_policy(user_id, min_balance=0)
    site = Site()
    site.signs_in(user_id)
    async with running_site(site, service.target) as url, opened(chromium, url) as page:
        await expect(balance(page)).to_have_text("0")
        await expect(details(page)).to_have_text("20 credits owed")
        await expect(page.locator("credits-cost")).to_contain_text("45 credits short")
        await client.grant_credits(user_id, 100, reason="a test")
        await expect(balance(page)).to_have_text("80")
        await client.set_account_policy(user_id, frozen=True)
        await expect(balance(page)).to_have_text("0")
        await expect(details(page)).to_have_text("This account is frozen. Please contact support.")


async def test_low_credits_are_shown_until_there_are_enough_again(
    chromium, service, database, client
):
    user_id = await database.user(50)
    site = Site()
    site.signs_in(user_id)
    async with running_site(site, service.target) as url, opened(chromium, url) as page:
        low = page.locator("credits-low")
        await expect(balance(page)).to_have_text("50")
        await expect(low).to_have_text("")
        await client.set_account_policy(user_id, alert_below=51)
        await expect(low).to_have_text("Only 50 credits are left.")
        await expect(low.get_by_role("status")).to_have_text("Only 50 credits are left.")
        await client.spend_credits(user_id, amount=49)
        await expect(low).to_have_text("Only 1 credit is left.")
        await client.spend_credits(user_id, amount=1)
        await expect(low).to_have_text("No credits are left.")
        # Credits would not help a frozen account, and the balance element says that it is frozen.
        await client.set_account_policy(user_id, frozen=True)
        await expect(low).to_have_text("")
        await client.set_account_policy(user_id, frozen=False)
        await expect(low).to_have_text("No credits are left.")
        await client.grant_credits(user_id, 51, reason="a test")
        await expect(low).to_have_text("")


async def test_a_description_is_text_and_never_markup(chromium, service, database, client):
    user_id = await database.user(100)
    attack = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    await client.spend_credits(user_id, amount=1, description=attack)
    site = Site()
    site.signs_in(user_id)
    async with running_site(site, service.target) as url, opened(chromium, url) as page:
        row = page.locator("credits-history [part=row]").first
        await expect(row).to_contain_text(attack)
        assert await row.locator("img, script").count() == 0
        assert await page.title() == "Credits"
        assert site.reports == []


@pytest.fixture(scope="module")
async def shop(make_shared_database):
    async with running_shop(await make_shared_database()) as shop:
        yield shop


@asynccontextmanager
async def buying(chromium, shop, mode, credits_=10):
    """A user's page in front of the fake's checkout; yields it, the user and the site."""
    await shop.fake.settings(mode=mode)
    user_id = await shop.database.user(credits_)
    site = Site()
    site.signs_in(user_id)
    async with (
        shop.bridge(),
        shop.site(site) as url,
        opened(chromium, url) as page,
    ):
        await buy_button(page).click()
        await page.get_by_role("button", name="Pay").wait_for()
        yield page, user_id, site
    await shop.fake.settings(mode="lose")


def buy_button(page):
    return page.locator("credits-packs").get_by_role("button", name="Buy 100 credits")


def message(page):
    return page.locator("credits-return [part=message]")


async def test_a_webhook_that_comes_late_or_never_delays_no_credit_and_doubles_none(chromium, shop):
    async with buying(chromium, shop, "hold") as (page, user_id, _):
        await page.get_by_role("button", name="Pay").click()
        await expect(message(page)).to_have_text("Paid. 100 credits were added.")
        await expect(balance(page)).to_have_text("110")
        await shop.fake.deliver_all()
        await shop.client.spend_credits(user_id, amount=1)
        await expect(balance(page)).to_have_text("109")
    async with buying(chromium, shop, "lose") as (page, *_):
        await page.get_by_role("button", name="Pay").click()
        await expect(message(page)).to_have_text("Paid. 100 credits were added.")
        await expect(balance(page)).to_have_text("110")


async def test_a_payment_that_takes_days_is_shown_as_processing_until_it_is_paid(chromium, shop):
    async with buying(chromium, shop, "lose") as (page, *_):
        session = page.url.rpartition("/")[2]
        await shop.fake.pay_session(session, when="later")
        await page.goto(f"http://127.0.0.1:{shop.port}/?checkout={session}")
        await expect(message(page)).to_have_text(
            "Your bank is still processing the payment. The credits arrive when it is confirmed."
        )
        await expect(balance(page)).to_have_text("10")
        await shop.fake.settle_session(session)
        await expect(message(page)).to_have_text("Paid. 100 credits were added.")
        await expect(balance(page)).to_have_text("110")


async def test_an_abandoned_checkout_is_open_and_an_unknown_one_is_unknown(chromium, shop):
    async with buying(chromium, shop, "lose") as (page, *_):
        session = page.url.rpartition("/")[2]
        address = f"http://127.0.0.1:{shop.port}/?checkout="
        await page.goto(f"{address}{session}")
        await expect(message(page)).to_have_text("This payment has not been completed.")
        await page.goto(f"{address}cs_test_{'0' * 32}")
        await expect(message(page)).to_have_text("This payment is not known here.")
        await expect(balance(page)).to_have_text("10")


async def test_while_the_bridge_is_away_the_page_promises_nothing_and_keeps_asking(chromium, shop):
    await shop.fake.settings(mode="lose")
    user_id = await shop.database.user(10)
    site = Site()
    site.signs_in(user_id)
    async with shop.site(site) as url:
        async with shop.bridge(), opened(chromium, url) as page:
            await buy_button(page).click()
            await page.get_by_role("button", name="Pay").wait_for()
            session = page.url.rpartition("/")[2]
        await shop.fake.pay_session(session)
        async with opened(chromium, url, path=f"/?checkout={session}") as page:
            await expect(message(page)).to_have_text(
                "We cannot check your payment at the moment. Nothing is lost; we keep trying."
            )
            await expect(balance(page)).to_have_text("10")
            async with shop.bridge():
                await expect(message(page)).to_have_text("Paid. 100 credits were added.")
                await expect(balance(page)).to_have_text("110")


async def test_the_page_follows_the_billing_portal_to_its_own_hosts(chromium, shop):
    user_id = await shop.database.user(10)
    await shop.fake.do("customer", metadata={"credit_user_id": str(user_id)})
    site = Site()
    site.signs_in(user_id)
    async with (
        shop.bridge(),
        shop.site(site, portal=True) as url,
        opened(chromium, url) as page,
    ):
        await expect(balance(page)).to_have_text("10")
        await page.evaluate("() => void document.querySelector('credits-provider').store.portal()")
        await page.wait_for_url(f"{shop.fake.url}/_fake/portal/**")


async def test_twenty_clicks_in_one_tick_open_one_checkout_that_saves_the_card(chromium, shop):
    await shop.fake.settings(mode="lose")
    site = Site()
    site.signs_in(await shop.database.user(10))
    async with shop.bridge(), shop.site(site) as url, opened(chromium, url) as page:
        orders = []
        page.on("request", lambda sent: orders.append(sent) if sent.method == "POST" else None)
        button = buy_button(page)
        await button.wait_for()
        await page.evaluate("document.querySelector('credits-packs').toggleAttribute('save-card')")
        await button.evaluate("(button) => { for (let n = 0; n < 20; n += 1) button.click(); }")
        await page.get_by_role("button", name="Pay").wait_for()
        (order,) = [order for order in orders if order.url.endswith("/checkouts")]
        assert order.post_data_json == {"pack": "starter", "save_card": True}


async def test_a_repeat_after_a_lost_answer_is_the_same_order(chromium, shop):
    await shop.fake.settings(mode="lose")
    site = Site()
    site.signs_in(await shop.database.user(10))
    async with shop.bridge(), shop.site(site) as url, opened(chromium, url) as page:
        answers = []

        async def lost(route):
            answers.append(await (await route.fetch()).json())
            await route.abort()

        await page.route("**/credits/checkouts", lost, times=1)
        await buy_button(page).click()
        await expect(page.locator("credits-packs [part=error]")).to_have_text(
            "The checkout could not be opened. You have not been charged."
        )
        await buy_button(page).click()
        await page.get_by_role("button", name="Pay").wait_for()
        assert page.url == answers[0]["url"]


async def test_a_strict_content_security_policy_reports_nothing(chromium, shop):
    await shop.fake.settings(mode="lose")
    user_id = await shop.database.user(30)
    for _ in range(3):
        await shop.client.spend_credits(user_id, operation="render")
    site = Site()
    site.signs_in(user_id)
    async with shop.bridge(), shop.site(site) as url, opened(chromium, url) as page:
        await expect(page.locator("credits-usage svg")).to_be_visible()
        history = page.locator("credits-history")
        await history.get_by_role("button", name="Show more").click()
        await expect(history.locator("[part=row]")).to_have_count(4)
        await page.evaluate(
            "document.querySelector('credits-provider').refuse("
            "{reason: 'INSUFFICIENT_CREDITS', required: 25, available: 15, shortfall: 10})"
        )
        await page.evaluate("document.querySelector('credits-cost').items = 'render:9'")
        await expect(page.locator("credits-cost")).to_contain_text("30 credits short")
        await shop.client.hold_credits(user_id, amount=1)
        await expect(details(page)).to_have_text("1 held for running jobs")
        assert await page.evaluate("violations") == []
        await page.locator("credits-shortfall").get_by_role("button").click()
        await page.get_by_role("button", name="Pay").click()
        await expect(message(page)).to_have_text("Paid. 100 credits were added.")
        assert await page.evaluate("violations") == []
        assert site.reports == []
    # The collector works: it gets a report of something that the policy forbids.
    async with (
        shop.site(site) as url,
        opened(chromium, url, expected=("Applying inline style",)) as page,
    ):
        await page.evaluate("document.body.setAttribute('style', 'color: red')")
        await eventually(lambda: site.reports)
        assert await page.evaluate("violations") == ["style-src-attr"]
