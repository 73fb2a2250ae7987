"""The program credit-gateway: settings, start, health, metrics, log, stop, files."""

import contextlib
import hashlib
import json
import re
import signal
import socket
from importlib.metadata import version
from uuid import uuid4

import httpx
import pytest
from kit.gateways import bearer, gateway_program, opened_page
from kit.http_clients import http_client
from kit.paths import ROOT
from kit.programs import free_port
from kit.services import running, server_settings
from kit.waiting import eventually, patience

from credit_service.gateway import cli, config, files, metrics
from credit_service.runtime.environment import ConfigurationError

pytestmark = pytest.mark.shared

P = "CREDIT_GATEWAY_"
SELLING = {
    "BRIDGE_ADDRESS": "http://127.0.0.1:8081",
    "BRIDGE_TOKEN": "secret-token",
    "SUCCESS_URL": "https://app.example.com/paid?c={CHECKOUT_SESSION_ID}",
    "CANCEL_URL": "https://app.example.com/credits",
}
JWT = {
    "JWT_ISSUER": "https://login.example.com/",
    "JWT_AUDIENCE": "credits",
    "JWT_KEYS_URL": "https://login.example.com/keys",
}


@contextlib.asynccontextmanager
async def serving(service, **settings):
    """Runs the program beside a service, for development users."""
    options = {
        "LISTEN": "127.0.0.1:0",
        "CREDIT_TARGET": service.target,
        "DEVELOPMENT": "true",
        "LOG_FORMAT": "json",
        **settings,
    }
    with gateway_program(**options) as started:
        match = started.wait_for(r"listens on (\S+:\d+)")
        limits = httpx.Limits(max_connections=None)
        async with http_client(
            base_url=f"http://{match[1]}", timeout=patience(30), limits=limits
        ) as http:
            yield started, http


async def test_it_serves_and_shows_its_health_and_its_metrics(service, database):
    user_id, port = await database.user(100), free_port()
    async with serving(service, METRICS_PORT=str(port)) as (started, http):
        assert f"credit-gateway {version('credit-service')}" in started.output
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        assert (await http.get("/readyz")).json() == {"status": "ready"}
        secret = "?cursor=to-be-kept-out"
        assert (await http.get("/account", headers=bearer(user_id))).status_code == 200
        await http.get(f"/transactions{secret}", headers=bearer(user_id))
        async with opened_page(http, bearer(user_id)) as page:
            await page.shows(100)
            async with http_client() as prometheus:
                shown = (await prometheus.get(f"http://127.0.0.1:{port}/metrics")).text
        assert 'credit_gateway_requests_total{method="GET",path="/account"' not in shown
        assert 'route="/account",status="200"} 1.0' in shown
        assert "credit_gateway_streams 1.0" in shown
        assert "credit_gateway_watches 1.0" in shown
        assert "credit_gateway_ready 1.0" in shown
        assert "credit_gateway_build_info{version=" in shown
        started.wait_for('"path":"/transactions"')
        (line,) = [line for line in started.lines if '"path":"/account",' in line]
        logged = json.loads(line)
        assert {**logged, "ms": 0, "timestamp": ""} == {
            "event": "request",
            "level": "info",
            "method": "GET",
            "path": "/account",
            "status": 200,
            "user": str(user_id),
            "ms": 0,
            "timestamp": "",
        }
        assert "to-be-kept-out" not in started.output
        assert "Bearer" not in started.output


async def test_it_is_not_ready_while_the_service_is_away(database):
    async with running(server_settings(database.service_url)) as service:
        pass
    async with serving(service) as (_, http):
        answer = await http.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "not ready")
        assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_hundred_streams_and_the_program(number, service, database):
    users = [await database.user(10) for _ in range(25)]
    async with (
        serving(service) as (started, http),
        contextlib.AsyncExitStack() as stack,
    ):
        pages = [
            await stack.enter_async_context(opened_page(http, bearer(user_id)))
            for user_id in users * 4
        ]
        for page in pages:
            await page.shows(10)
        started.signal(number)
        assert {await page.ends() for page in pages} == {"stopping"}
        await eventually(lambda: started.popen.poll() is not None)
        assert started.wait() == 0
    assert "Traceback" not in started.output


async def test_it_is_unready_before_it_stops(service):
    async with serving(service, UNREADY_SECONDS="60") as (started, http):
        started.signal(signal.SIGTERM)
        started.wait_for("no longer ready")
        answer = await http.get("/readyz")
        assert (answer.status_code, answer.json()["reason"]) == (503, "stopping")
        assert (await http.get("/account", headers=bearer(uuid4()))).status_code == 200
        started.signal(signal.SIGTERM)
        assert started.wait() == 1


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs a command with these settings; returns the one line of its refusal."""
    # The tests' own log stays where it is.
    monkeypatch.setattr(cli.logs, "configure", lambda **_: None)

    def refused(*arguments, **settings):
        for name, value in settings.items():
            monkeypatch.setenv(P + name, value)
        with pytest.raises(SystemExit) as end:
            cli.main(list(arguments or ("serve",)))
        assert end.value.code == 2
        (line,) = [
            line
            for line in capsys.readouterr().err.splitlines()
            if line.startswith("credit-gateway: ")
        ]
        return line

    return refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, f"no user could be identified: set {P}SUPABASE_URL or {P}JWT_ISSUER"),
        ({"LISTEN": "0.0.0.0:1"}, f"set {P}ALLOW_PLAINTEXT=true"),
        (
            {"LISTEN": "0.0.0.0:1", "ALLOW_PLAINTEXT": "true", "DEVELOPMENT": "true"},
            "beyond loopback, where development users",
        ),
        ({"DEVELOPMENT_USER": str(uuid4())}, f"needs {P}DEVELOPMENT=true"),
        ({"SUPABASE_URL": "http://project.supabase.co"}, "must be https"),
        ({"SUPABASE_URL": "https://p.supabase.co", "DEVELOPMENT": "true"}, "set only one of"),
        ({"SUPABASE_URL": "https://p.supabase.co/path"}, "must be like"),
        ({"SUPABASE_SHARED_SECRET": "true"}, f"{P}SUPABASE_API_KEY go together"),
        ({"JWT_ISSUER": "i"}, "go together; set all"),
        ({**JWT, "JWT_ALGORITHMS": "HS256"}, "algorithms must be some of"),
        ({"STREEMS": "1"}, f"did you mean {P}STREAMS?"),
        ({"ORIGINS": "https://app.example.com/path"}, "without a path"),
        ({"ORIGINS": "*"}, "must be origins"),
        ({"BRIDGE_ADDRESS": "http://127.0.0.1:1"}, f"{P}BRIDGE_ADDRESS needs {P}BRIDGE_TOKEN"),
        ({"BRIDGE_TOKEN": "t"}, "something is to be sold"),
        ({**SELLING, "BRIDGE_ADDRESS": "http://bridge.example.com"}, "must be https"),
        ({"CHECKOUT_HOSTS": "https://checkout.stripe.com"}, "must be hosts"),
        ({"CREDIT_TLS_KEY": "/key.pem"}, "go together; set both"),
        ({"DEVELOPMENT": "true", "CREDIT_TLS_CA": "/none.pem"}, f"{P}CREDIT_TLS_CA: /none.pem"),
        ({"CREDIT_TOKEN": "with space"}, "without spaces"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(settings, words, refused):
    assert words in refused(**settings)


def test_a_taken_port_is_refused(refused, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(LISTEN=f"127.0.0.1:{port}", DEVELOPMENT="true")
    assert f"choose another with {P}LISTEN" in line


def test_every_setting_is_printed_and_secrets_are_not(monkeypatch, capsys):
    for name, value in {**SELLING, **JWT, "CREDIT_TOKEN": "top-secret"}.items():
        monkeypatch.setenv(P + name, value)
    with contextlib.suppress(SystemExit):
        cli.main(["settings"])
    printed = capsys.readouterr().out
    for name in config.Settings.model_fields:
        assert re.search(rf"^{config.variable(name)}\b", printed, re.MULTILINE)
    assert "top-secret" not in printed
    assert "secret-token" not in printed


@pytest.mark.parametrize(
    "settings",
    [
        JWT,
        {**JWT, "JWT_USER_NAMESPACE": str(uuid4())},
        {"SUPABASE_URL": "https://project.supabase.co"},
        {
            "SUPABASE_URL": "https://project.supabase.co",
            "SUPABASE_SHARED_SECRET": "true",
            "SUPABASE_API_KEY": "sb_publishable_x",
        },
    ],
)
async def test_it_starts_with_every_way_to_identify_users(settings, service):
    options = {"LISTEN": "127.0.0.1:0", "CREDIT_TARGET": service.target, **SELLING, **settings}
    with gateway_program(**options) as started:
        match = started.wait_for(r"listens on (\S+:\d+)")
        async with http_client(base_url=f"http://{match[1]}") as http:
            assert (await http.get("/account")).status_code == 401
            config_ = (await http.get("/config")).json()
            assert config_["features"] == {"checkout": True, "portal": False}
        started.signal(signal.SIGTERM)
        assert started.wait() == 0


def test_every_command_refuses_a_broken_environment(monkeypatch):
    monkeypatch.setenv(P + "LISTEN", "nowhere")
    with pytest.raises(ConfigurationError, match="host:port"):
        config.read()


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == f"credit-gateway {version('credit-service')}"


def test_every_metric_is_documented():
    text = (ROOT / "docs/deploy.md").read_text()
    made = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for metric in vars(metrics).values()
        if hasattr(metric, "describe") and not isinstance(metric, type)
        for family in metric.describe()
    } | {"credit_gateway_build_info"}
    assert set(re.findall(r"`(credit_gateway_[a-z_]+)`", text)) == made


def test_the_files_can_be_written_for_a_cdn(tmp_path, capsys):
    with contextlib.suppress(SystemExit):
        cli.main(["files", str(tmp_path / "cdn")])
    written = {path.name: path.read_bytes() for path in (tmp_path / "cdn").iterdir()}
    assert len(capsys.readouterr().out.splitlines()) == len(written)
    for each in files.packaged():
        assert written[each.name] == each.content
        if each.is_script:
            digest = hashlib.sha256(each.content).hexdigest()[:16]
            assert written[each.hashed_name] == each.content
            assert digest in each.hashed_name
    assert "openapi.json" in written
