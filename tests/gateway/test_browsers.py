"""The headers that browsers need, and the pages that may send requests."""

import socket
from uuid import uuid4

import pytest
from kit.gateways import bearer, gateway_settings, named_users, problem, running_gateway

from credit_service.gateway import DevelopmentUsers, User
from credit_service.gateway.users import DevelopmentError

pytestmark = pytest.mark.shared

PAGE = "https://app.example.com"
USER = uuid4()


async def cookie_users(request):
    """Accepts the cookie of a session, like an app with its own server."""
    if request.cookies.get("session") == "good":
        return User(USER)
    return await named_users(request)


@pytest.fixture(scope="module")
async def gateway(_shared_service):
    settings = gateway_settings(_shared_service.target, users=cookie_users, origins=(PAGE,))
    async with running_gateway(settings) as gateway:
        yield gateway


async def test_every_answer_forbids_sniffing_framing_and_caching(gateway):
    for path, status in (("/account", 200), ("/nothing", 404), ("/config", 200), ("/healthz", 200)):
        answer = await gateway.get(USER, path)
        assert answer.status_code == status
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == (
            "default-src 'none'; frame-ancestors 'none'"
        )
        assert answer.headers["referrer-policy"] == "no-referrer"
    personal = await gateway.get(USER, "/account")
    assert personal.headers["cache-control"] == "no-store, no-transform"
    assert personal.headers["vary"] == "Authorization, Cookie, Origin"
    refused = await gateway.http.get("/account")
    assert refused.headers["cache-control"] == "no-store, no-transform"


async def test_only_a_listed_origin_may_send_requests(gateway):
    answer = await gateway.http.get("/account", headers=bearer(USER) | {"Origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["access-control-expose-headers"] == "Retry-After"
    for origin in (
        "https://evil.example.com",
        "null",
        f"{PAGE}.evil.com",
        "http://app.example.com",
    ):
        answer = await gateway.http.get("/account", headers=bearer(USER) | {"Origin": origin})
        assert "access-control-allow-origin" not in answer.headers
        assert "Origin" in answer.headers["vary"]
    refused = await gateway.http.get("/account", headers={"Origin": PAGE})
    # The page can read the reason of the refusal.
    assert problem(refused) == (401, "UNAUTHENTICATED")
    assert refused.headers["access-control-allow-origin"] == PAGE


async def test_a_preflight_allows_the_headers_that_the_page_sends(gateway):
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
    }
    allowed = await gateway.http.options("/checkouts", headers={"Origin": PAGE, **asked})
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-origin"] == PAGE
    assert "POST" in allowed.headers["access-control-allow-methods"]
    for header in asked["Access-Control-Request-Headers"].split(","):
        assert header in allowed.headers["access-control-allow-headers"]
    refused = await gateway.http.options("/checkouts", headers={"Origin": "https://evil", **asked})
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("path", ["/account", "/account/stream", "/transactions", "/packs"])
@pytest.mark.parametrize(
    "browser",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "https://evil.example.com"},
        {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
        {},
        # Browsers add these by themselves if a proxy asks for a password.
        {"Authorization": "Basic dXNlcjpwYXNz", "Sec-Fetch-Site": "cross-site"},
        {"Authorization": "Negotiate YII=", "Origin": "null"},
    ],
)
async def test_a_cookie_is_accepted_only_from_a_page_of_this_origin(path, browser, gateway):
    headers = {"Cookie": "session=good", **browser}
    assert problem(await gateway.http.get(path, headers=headers)) == (403, "CROSS_ORIGIN")


async def test_a_cookie_from_a_page_of_a_listed_origin_is_accepted(gateway):
    for browser in ({"Sec-Fetch-Site": "same-origin"}, {"Origin": PAGE}):
        headers = {"Cookie": "session=good", **browser}
        assert (await gateway.http.get("/account", headers=headers)).status_code == 200
    headers = {"Cookie": "session=good", "Sec-Fetch-Site": "same-origin"}
    # A form of another page can post text but not JSON.
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = await gateway.http.post(
            "/quotes", content=b'{"items": []}', headers={**headers, "Content-Type": kind}
        )
        assert problem(answer) == (415, "UNSUPPORTED_MEDIA_TYPE")
    work = {"items": [{"operation": "render"}]}
    assert (await gateway.http.post("/quotes", json=work, headers=headers)).status_code == 200
    assert problem(
        await gateway.http.get("/account", headers={**headers, "Cookie": "session=bad"})
    ) == (401, "UNAUTHENTICATED")


async def test_a_request_without_credentials_is_unauthenticated(gateway):
    answer = await gateway.http.get("/account")
    assert problem(answer) == (401, "UNAUTHENTICATED")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_other_paths_and_methods_are_refused_without_a_redirect(gateway):
    for path in ("/account/", "//account", "/", "/account/stream/x", "/%2e%2e/account"):
        assert problem(await gateway.get(USER, path)) == (404, "NOT_FOUND")
    for method, path in (("POST", "/account"), ("DELETE", "/account"), ("GET", "/quotes")):
        answer = await gateway.http.request(method, path, headers=bearer(USER))
        assert problem(answer) == (405, "METHOD_NOT_ALLOWED")
        assert answer.headers["allow"]


@pytest.fixture
async def developing(service, monkeypatch):
    monkeypatch.setenv("CREDIT_GATEWAY_DEVELOPMENT", "true")
    settings = gateway_settings(service.target, users=DevelopmentUsers(USER))
    async with running_gateway(settings) as gateway:
        yield gateway


async def test_a_development_user_is_the_user_that_the_token_names(developing):
    assert (await developing.get(uuid4(), "/account")).status_code == 200
    same = {"Sec-Fetch-Site": "same-origin"}
    assert (await developing.http.get("/account", headers=same)).status_code == 200
    here = f"http://127.0.0.1:{developing.port}"
    headers = bearer(uuid4()) | {"Origin": here}
    assert (await developing.http.get("/account", headers=headers)).status_code == 200
    assert problem(await developing.get("no uuid", "/account")) == (401, "UNAUTHENTICATED")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "credits.example.com"},
        {"Host": "127.0.0.1.example.com:8082"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-Host": "localhost"},
        {"Forwarded": "for=127.0.0.1"},
        {"Via": "1.1 proxy"},
        {"X-Real-IP": "127.0.0.1"},
        {"Origin": "https://evil.example.com"},
        {"Origin": "http://localhost:1"},
    ],
)
async def test_development_users_exist_only_on_this_machine(headers, developing):
    answer = await developing.http.get("/account", headers=bearer(USER) | headers)
    assert problem(answer) == (403, "DEVELOPMENT_ONLY")


async def test_development_users_are_for_loopback_connections(service, monkeypatch):
    monkeypatch.setenv("CREDIT_GATEWAY_DEVELOPMENT", "true")
    settings = gateway_settings(service.target, users=DevelopmentUsers(USER), listen="0.0.0.0:0")
    address = outer_address()
    if address is None:
        pytest.skip("this machine has no address beside loopback")
    async with running_gateway(settings) as gateway:
        answer = await gateway.http.get(
            f"http://{address}:{gateway.port}/account",
            headers=bearer(USER) | {"Host": "127.0.0.1"},
        )
        assert problem(answer) == (403, "DEVELOPMENT_ONLY")


def outer_address():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        address = probe.getsockname()[0]
        return None if address.startswith("127.") else address


def test_development_users_must_be_allowed_by_a_setting(monkeypatch):
    monkeypatch.delenv("CREDIT_GATEWAY_DEVELOPMENT", raising=False)
    with pytest.raises(DevelopmentError, match="CREDIT_GATEWAY_DEVELOPMENT=true"):
        DevelopmentUsers()
