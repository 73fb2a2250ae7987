"""A page in Chromium, opened and looked at."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from kit.waiting import patience
from playwright.async_api import Browser, BrowserContext, Locator, Page

# Chromium itself writes these about requests that fail; the page writes none of them.
_BY_THE_BROWSER = ("Failed to load resource", "net::ERR_")


async def new_context(chromium: Browser, **options: object) -> BrowserContext:
    """A separate profile, with deadlines that grow with the slowness of the machine."""
    context = await chromium.new_context(**options)
    context.set_default_timeout(patience(30) * 1000)
    return context


@asynccontextmanager
async def opened(
    chromium: Browser,
    url: str,
    *,
    path: str = "/",
    expected: tuple[str, ...] = (),
    cookies: Sequence[dict] = (),
) -> AsyncIterator[Page]:
    """Opens a page for the length of the block; none of its scripts may throw.

    Args:
        chromium: the browser.
        url: the site's address.
        path: the page's path.
        expected: parts of the messages that may be on its console.
        cookies: those that the browser has for the site.
    """
    context = await new_context(chromium)
    await context.add_cookies(cookies)
    page = await context.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    await page.goto(url + path)
    try:
        yield page
    finally:
        await context.close()
    expected += _BY_THE_BROWSER
    assert [line for line in wrong if not any(words in line for words in expected)] == []


def balance(page: Page) -> Locator:
    """The headline of the balance."""
    return page.locator("credits-balance [part~=value]")


def details(page: Page) -> Locator:
    """The lines beneath the balance."""
    return page.locator("credits-balance [part=details]")
