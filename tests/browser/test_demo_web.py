"""The story of `scripts/demo --web`, clicked through in a real browser."""

import contextlib
import os
import signal
import uuid
from contextlib import asynccontextmanager
from pathlib import Path

from axe_playwright_python.async_playwright import Axe
from kit.browser_pages import new_context
from kit.waiting import eventually, patience
from playwright.async_api import expect

from credit_service.client import CreditClient

# The browser itself writes these to its console after a refusal and for a signed-out user.
_EXPECTED = ("402", "Payment Required")


@asynccontextmanager
async def page_of(chromium, demo, credits_=25, **options):
    """A page on which a new user with `credits_` is signed in; it must have no errors."""
    user = uuid.uuid4()
    async with CreditClient(demo.service) as client:
        await client.grant_credits(user, credits_, reason="a test", idempotency_key="grant:1")
    context = await new_context(chromium, **options)
    page = await context.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    await page.goto(f"{demo.page}?user={user}")
    await page.get_by_role("button", name="Sign in").click()
    page.user = str(user)
    try:
        yield page
    except Exception as error:
        error.add_note(f"The demo printed:\n{demo.program.output}")
        raise
    await context.close()
    assert [line for line in wrong if not any(word in line for word in _EXPECTED)] == []


def balance(page):
    return page.locator("credits-balance [part~=value]")


async def separate(page):
    await page.get_by_role("button", name="Separate").click()


async def violations(page):
    results = await Axe().run(page)
    return [(found["id"], len(found["nodes"])) for found in results.response["violations"]]


async def test_a_user_works_runs_out_buys_and_goes_on(chromium, demo):
    async with page_of(chromium, demo) as page:
        await expect(balance(page)).to_have_text("25")
        low = page.locator("credits-low")
        await expect(low).to_have_text("")
        costs = page.locator("credits-cost")
        await expect(costs.first).to_contain_text("10 credits")
        await expect(costs.last).to_contain_text("25 credits")
        for left in ("15", "5"):
            await separate(page)
            await expect(page.locator("#job-state")).to_contain_text(
                "Done", timeout=patience(60) * 1000
            )
            await expect(balance(page)).to_have_text(left)
        await expect(page.locator("audio")).to_have_count(2)
        await expect(low).to_have_text("Only 5 credits are left.")
        await separate(page)
        shortfall = page.locator("credits-shortfall")
        await expect(shortfall).to_contain_text("You need 5 more credits.")
        await shortfall.get_by_role("button", name="Buy Single for €5.00").click()
        await page.get_by_role("button", name="Pay").click()
        await expect(page.locator("credits-return")).to_contain_text("Paid. 50 credits were added.")
        await expect(balance(page)).to_have_text("55")
        await expect(low).to_have_text("")
        assert "cs_" not in page.url
        await expect(page.locator("credits-history")).to_contain_text("+50")
        await expect(page.locator("credits-usage table")).to_contain_text("20")


def workers_of(user):
    """The processes of the example's worker that work for a user."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().split(b"\0")
            if user.encode() in command and any(b"stem_worker" in word for word in command):
                yield int(process.name)


async def test_a_running_job_holds_its_credits_and_a_killed_worker_gives_them_back(chromium, demo):
    async with page_of(chromium, demo) as page:
        await separate(page)
        await expect(page.locator("credits-balance")).to_contain_text("10 held for running jobs")
        await expect(balance(page)).to_have_text("15")
        (worker,) = await eventually(lambda: list(workers_of(page.user)))
        os.kill(worker, signal.SIGKILL)
        await expect(page.locator("#job-state")).to_contain_text("Your credits are back.")
        await expect(balance(page)).to_have_text("25")
        demo.program.wait_for(f"failed: its worker, process {worker}, was ended by signal 9")


async def test_two_tabs_show_every_change_and_a_closed_one_hands_over_its_stream(chromium, demo):
    async with page_of(chromium, demo) as first:
        second = await first.context.new_page()
        await second.goto(demo.page)
        await expect(balance(second)).to_have_text("25")
        async with CreditClient(demo.service) as client:
            await client.spend_credits(first.user, amount=1, idempotency_key="spend:1")
            await expect(balance(first)).to_have_text("24")
            await expect(balance(second)).to_have_text("24")
            await first.close()
            await client.spend_credits(first.user, amount=1, idempotency_key="spend:2")
            await expect(balance(second)).to_have_text("23")


async def test_signing_out_hides_the_credits_and_the_next_user_sees_only_theirs(chromium, demo):
    async with page_of(chromium, demo, 37) as page:
        await expect(balance(page)).to_have_text("37")
        await expect(page.locator("credits-history")).to_contain_text("+37")
        await page.get_by_role("button", name="Sign out").click()
        await expect(balance(page)).to_be_hidden()
        await page.locator("input[name=user]").fill(str(uuid.uuid4()))
        await page.get_by_role("button", name="Sign in").click()
        await expect(balance(page)).to_have_text("0")
        await expect(page.locator("credits-history")).to_contain_text("Nothing yet.")


async def test_a_double_click_opens_one_checkout_and_the_back_button_works(chromium, demo):
    async with page_of(chromium, demo) as page:
        orders = []
        page.on("request", lambda sent: orders.append(sent) if sent.method == "POST" else None)
        packs = page.locator("credits-packs")
        await packs.get_by_role("button", name="Buy Album").dblclick()
        await page.get_by_role("button", name="Pay").wait_for()
        assert len([order for order in orders if order.url.endswith("/checkouts")]) == 1
        await page.go_back()
        label = packs.get_by_role("listitem").filter(has_text="Label")
        await expect(label.locator("[part=valid]")).to_have_text("valid for 1 year")
        await expect(packs.locator("[part=valid]")).to_have_count(1)
        again = packs.get_by_role("button", name="Buy Label for €129.00")
        await expect(again).to_be_enabled()


async def test_a_purchase_needs_no_mouse(chromium, demo):
    async with page_of(chromium, demo) as page:
        button = page.locator("credits-packs").get_by_role("button", name="Buy Single")
        await button.focus()
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Pay").wait_for()
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(balance(page)).to_have_text("75")


async def test_the_page_is_accessible_and_fits_every_width_in_light_and_dark(chromium, demo):
    async with page_of(chromium, demo) as page:
        await expect(page.locator("credits-history")).to_contain_text("+25")
        async with CreditClient(demo.service) as client:
            await client.spend_credits(page.user, operation="render", idempotency_key="spend:1")
        await expect(page.locator("credits-usage svg")).to_be_visible()
        await separate(page)
        await expect(page.locator("#job-state")).not_to_have_text("")
        await expect(page.locator("credits-low")).to_have_text("Only 10 credits are left.")
        for width in (320, 768, 1280):
            await page.set_viewport_size({"width": width, "height": 800})
            for scheme in ("light", "dark"):
                await page.emulate_media(color_scheme=scheme)
                assert await violations(page) == [], (width, scheme)
                scrolled = await page.evaluate("document.documentElement.scrollWidth")
                assert scrolled <= width, (width, scheme)


async def test_numbers_follow_the_language_of_the_page(chromium, demo):
    async with page_of(chromium, demo, 1_234_567) as page:
        await expect(balance(page)).to_have_text("1,234,567")
        async with CreditClient(demo.service) as client:
            for locale, written in (
                ("de", "1.234.568"),
                ("ar-EG", "\u0661\u066c\u0662\u0663\u0664\u066c\u0665\u0666\u0669"),
            ):
                await page.evaluate(f"document.documentElement.lang = '{locale}'")
                await client.grant_credits(
                    page.user, 1, reason="one", idempotency_key=f"grant:{locale}"
                )
                await expect(balance(page)).to_have_text(written)
