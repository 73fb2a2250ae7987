"""The page of docs/web.md, with its printed HTML, styles and texts, beside the mounted gateway."""

from datetime import UTC, datetime

from kit.browser_pages import new_context
from kit.documents import snippets
from kit.issuers import running_issuer
from kit.paths import ROOT
from kit.web_hosts import serving
from playwright.async_api import expect
from starlette.responses import HTMLResponse

WEB = ROOT / "docs" / "web.md"

# Supabase's own module provides this session to the printed page.
PAGE = """<!doctype html>
<html lang="de"><meta charset="utf-8"><title>Credits</title><link rel="icon" href="data:,">
<style>{css}</style>
<script>
const session = {{ access_token: "{token}" }};
const supabase = {{ auth: {{ getSession: async () => ({{ data: {{ session }} }}) }} }};
</script>
{html}
<script type="module">
const provider = document.querySelector("credits-provider");
{js}
</script></html>"""


async def test_the_printed_page_shows_the_balance_in_its_own_looks_and_words(
    chromium, service, client, database
):
    user_id = await database.user(100)
    await client.hold_credits(user_id, amount=30)
    (mounting,) = snippets(WEB, "In ten minutes", "python")
    (html,) = snippets(WEB, "In ten minutes", "html")
    css, js = snippets(WEB, "Looks and words", "css", "js")
    async with running_issuer() as issuer:
        names = {}
        exec(
            mounting.replace("127.0.0.1:50051", service.target).replace(
                "https://project.supabase.co", issuer.url
            ),
            names,
        )
        page_text = PAGE.format(css=css, html=html, js=js, token=issuer.token(user_id))
        names["app"].get("/", response_class=HTMLResponse)(lambda: page_text)
        async with (
            names["client"],
            names["gateway"],
            serving(names["app"], lifespan="off") as url,
        ):
            context = await new_context(chromium)
            page = await context.new_page()
            await page.goto(url)
            balance = page.locator("credits-balance")
            value = balance.locator("[part=value]")
            await expect(value).to_have_text("70")
            await expect(value).to_have_css("font-family", "Georgia, serif")
            await expect(value).to_have_css("font-size", "48px")
            await expect(balance).to_contain_text("Guthaben")
            await expect(balance).to_contain_text("30 für laufende Aufträge reserviert")
            await client.grant_credits(user_id, 5, reason="live", idempotency_key="live")
            await expect(value).to_have_text("75")
            noon = datetime(datetime.now(UTC).year + 1, 3, 1, 12, tzinfo=UTC)
            await client.grant_credits(user_id, 40, reason="gift", expire_time=noon)
            await expect(balance).to_contain_text(f"40 verfallen am 1. März {noon.year}")
            await context.close()
            names["gateway"].stop()
