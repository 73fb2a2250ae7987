"""The bridge's settings: the values that each takes or refuses, and the words of refusals."""

import os

import pytest

from credit_service.runtime.environment import ConfigurationError
from stripe_bridge import cli, config
from stripe_bridge.catalog import Catalog, Listed
from stripe_bridge.webhook import Secret

PREFIX = "STRIPE_BRIDGE_"


@pytest.fixture
def read(monkeypatch):
    """Reads the settings from these variables, named without the prefix, and no others."""
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)

    def read(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(PREFIX + name, value)
        return config.read()

    return read


@pytest.fixture
def refused(read, monkeypatch, capsys):
    """Starts the command line with these variables; returns the one line of its refusal."""

    def refused(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(PREFIX + name, value)
        with pytest.raises(SystemExit) as end:
            cli.main(["settings"])
        assert end.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("stripe-bridge: ")
        return line.removeprefix("stripe-bridge: ")

    return refused


def test_without_any_variable_it_serves_this_machine_only_and_trusts_no_caller(read):
    settings = read()
    assert settings.listen == "127.0.0.1:8081"
    assert settings.secrets() == ()
    assert settings.checkout_token_sha256 is None
    policy = settings.policy()
    assert policy.catalog == Catalog()
    assert not policy.allow_client_reference_id
    assert not policy.allow_free_orders
    reasons = {"subscription_create", "subscription_cycle", "subscription_update"}
    assert policy.invoice_billing_reasons == reasons


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("LISTEN", "[::1]:0", "[::1]:0"),
        ("STRIPE_KEY", "rk_live_a", "rk_live_a"),
        ("STRIPE_ADDRESS", "http://127.0.0.1:12111", "http://127.0.0.1:12111"),
        ("STRIPE_ADDRESS", "https://proxy.example.com", "https://proxy.example.com"),
        ("ALLOWED_CURRENCIES", "eur,jpy\n", ("eur", "jpy")),
        ("INVOICE_BILLING_REASONS", "subscription_cycle", ("subscription_cycle",)),
        ("RETURN_ORIGINS", "https://a.example.com,http://localhost:3000",
         ("https://a.example.com", "http://localhost:3000")),
        ("CHECKOUT_TOKEN_SHA256", "0a" * 32, "0a" * 32),
        ("PARK_AFTER_HOURS", "0.5", 0.5),
        ("POLL_SECONDS", "0", 0),
        ("UNREADY_SECONDS", "0", 0),
        ("ALLOW_FREE_ORDERS", "true", True),
        ("METRICS_PORT", "9091", 9091),
    ],
)  # fmt: skip
def test_a_variable_sets_its_setting(read, name, text, value):
    taken = getattr(read(**{name: text}), name.lower())
    assert (taken.get_secret_value() if name == "STRIPE_KEY" else taken) == value


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        ("live:whsec_a", [("whsec_a", True)]),
        ("test:whsec_a", [("whsec_a", False)]),
        (" live:whsec_a ,\tlive:whsec_b\n", [("whsec_a", True), ("whsec_b", True)]),
        ("test:whsec_a,test:whsec_a", [("whsec_a", False), ("whsec_a", False)]),
    ],
)
def test_each_secret_belongs_to_a_mode_and_the_space_around_it_is_ignored(read, text, secrets):
    assert read(WEBHOOK_SECRETS=text).secrets() == tuple(
        Secret(value, live) for value, live in secrets
    )


SECRETS = "must be live:whsec_... or test:whsec_..., several with commas between"
EMPTY = "is empty; give it a value or unset it"

BAD = [
    *(
        ("WEBHOOK_SECRETS", text, SECRETS)
        for text in (
            *("whsec_hunter2", "live:hunter2", "live:", "live:whsec_", "LIVE:whsec_hunter2"),
            *("live:whsec_hunter2,", ",live:whsec_hunter2", "live:whsec_hunter2 test:whsec_b"),
            *("live: whsec_hunter2", "both:whsec_hunter2", "live:whsec_hunter2,whsec_b", ","),
        )
    ),
    ("WEBHOOK_SECRETS", "live:whsec_hunter2,test:whsec_b", "let test payments buy real credits"),
    *(
        ("STRIPE_KEY", text, "must be Stripe's restricted or secret key: rk_... or sk_...")
        for text in ("hunter2", "pk_live_hunter2", "sk_", "rk_live hunter2", "whsec_hunter2")
    ),
    ("CREDIT_TOKEN", "hunter2 x", "must be printable ASCII without spaces"),
    ("CREDIT_TOKEN", "hunter2ä", "must be printable ASCII without spaces"),
    ("CREDIT_TARGET", "localhost", "must be host:port"),
    ("CREDIT_TLS_CERTIFICATE", "/c.pem", "CREDIT_TLS_KEY go together; set both"),
    ("CREDIT_TLS_KEY", "/k.pem", "CREDIT_TLS_KEY go together; set both"),
    *(
        ("STRIPE_ADDRESS", text, "must be https://host:port, or http:// on this machine")
        for text in (
            *("api.stripe.com", "http://api.stripe.com", "https://a/b", "https://", "ftp://a"),
            *("https://user:hunter2@a", "http://127.0.0.1.example.com:1", "http://0.0.0.0:1"),
        )
    ),
    ("ALLOWED_CURRENCIES", "EUR", "must be currencies such as eur"),
    ("ALLOWED_CURRENCIES", "euro", "must be currencies such as eur"),
    ("INVOICE_BILLING_REASONS", "manual", "a checkout payment with an invoice would be credited"),
    ("INVOICE_BILLING_REASONS", "subscription_cycle,manual", "never manual"),
    *(
        ("RETURN_ORIGINS", text, "must be origins such as https://app.example.com")
        for text in ("*", "app.example.com", "https://a.example.com/", "HTTPS://a", "https://A.b")
    ),
    ("CHECKOUT_TOKEN_SHA256", "hunter2", "must be a SHA-256: 64 hex digits in lower case"),
    ("CHECKOUT_TOKEN_SHA256", "0A" * 32, "must be a SHA-256: 64 hex digits in lower case"),
    ("MAX_CREDITS_PER_PURCHASE", "0", "greater than or equal to 1"),
    ("MAX_CREDITS_PER_PURCHASE", "1000000000001", "less than or equal to 1000000000000"),
    ("PARK_AFTER_HOURS", "-1", "greater than or equal to 0"),
    ("PARK_AFTER_HOURS", "nan", "than or equal to"),
    ("POLL_SECONDS", "soon", "should be a valid number"),
    ("BODY_BYTES", "0", "greater than or equal to 1024"),
    ("REQUESTS_IN_FLIGHT", "0", "greater than or equal to 1"),
    ("LISTEN", "8081", "must be host:port"),
    ("METRICS_PORT", "0", "greater than or equal to 1"),
    ("LOG_LEVEL", "loud", "should be 'debug', 'info', 'warning' or 'error'"),
    *((name.upper(), " ", EMPTY) for name in config.Settings.model_fields),
]


@pytest.mark.parametrize(("name", "text", "problem"), BAD)
def test_a_value_that_cannot_be_used_is_refused_in_one_line(refused, name, text, problem):
    line = refused(**{name: text})
    assert PREFIX + name in line
    assert problem in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("key", "secret", "fit"),
    [
        ("rk_live_a", "live:whsec_a", True),
        ("rk_test_a", "test:whsec_a", True),
        ("rk_of_a_kind_to_come", "live:whsec_a", True),
        ("rk_test_a", "live:whsec_a", False),
        ("sk_live_a", "test:whsec_a", False),
    ],
)
def test_key_and_secrets_must_be_of_one_mode(read, key, secret, fit):
    if fit:
        assert read(STRIPE_KEY=key, WEBHOOK_SECRETS=secret).secrets()
        return
    with pytest.raises(ConfigurationError, match="are of different modes"):
        read(STRIPE_KEY=key, WEBHOOK_SECRETS=secret)


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "example.com:1"])
def test_beyond_loopback_it_listens_only_if_a_setting_says_that_a_proxy_has_tls(
    read, refused, listen
):
    line = refused(LISTEN=listen)
    assert f"{listen} is beyond loopback and stripe-bridge has no TLS" in line
    assert "STRIPE_BRIDGE_ALLOW_PLAINTEXT=true" in line
    assert read(ALLOW_PLAINTEXT="true").listen == listen


def test_an_unknown_variable_is_refused_with_the_nearest_name(refused):
    line = refused(WEBHOOK_SECRET="live:whsec_hunter2")
    assert "unknown setting STRIPE_BRIDGE_WEBHOOK_SECRET" in line
    assert "did you mean STRIPE_BRIDGE_WEBHOOK_SECRETS?" in line
    assert "hunter2" not in line


def test_the_policy_comes_from_catalogue_and_settings(read, tmp_path):
    file = tmp_path / "packs.toml"
    file.write_text('[[price]]\nprice = "price_1"\ncredits = 7\n')
    policy = read(
        CATALOG=str(file),
        ALLOW_CLIENT_REFERENCE_ID="true",
        ALLOW_FREE_ORDERS="true",
        MAX_CREDITS_PER_PURCHASE="500",
        ALLOWED_CURRENCIES="eur,jpy",
        INVOICE_BILLING_REASONS="subscription_cycle",
    ).policy()
    assert policy.catalog.by_price == {"price_1": Listed(7)}
    assert policy.allow_client_reference_id
    assert policy.allow_free_orders
    assert policy.max_credits_per_purchase == 500
    assert policy.allowed_currencies == {"eur", "jpy"}
    assert policy.invoice_billing_reasons == {"subscription_cycle"}


def test_a_catalogue_that_cannot_be_used_is_refused_by_name(read, tmp_path):
    missing = tmp_path / "missing.toml"
    with pytest.raises(ConfigurationError, match=r"missing\.toml: No such file"):
        read(CATALOG=str(missing)).policy()


def test_settings_are_shown_as_environment_variables_and_without_secrets(read, monkeypatch, capsys):
    read()
    for name, value in {
        "WEBHOOK_SECRETS": "live:whsec_hunter2,live:whsec_hunter3",
        "STRIPE_KEY": "rk_live_hunter2",
        "CREDIT_TOKEN": "hunter2",
        "ALLOWED_CURRENCIES": "eur, usd",
    }.items():
        monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(SystemExit) as end:
        cli.main(["settings"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "hunter" not in printed
    lines = printed.splitlines()
    assert {
        "STRIPE_BRIDGE_WEBHOOK_SECRETS=***,***  (unset)",
        "STRIPE_BRIDGE_STRIPE_KEY=***  (unset)",
        "STRIPE_BRIDGE_CREDIT_TOKEN=***  (unset)",
        "STRIPE_BRIDGE_ALLOWED_CURRENCIES=eur,usd  (unset)",
        "STRIPE_BRIDGE_POLL_SECONDS  (default 60)",
    } <= set(lines)
    for name, field in config.Settings.model_fields.items():
        (place,) = (
            number
            for number, line in enumerate(lines)
            if line.startswith((config.variable(name) + "=", config.variable(name) + " "))
        )
        assert lines[place + 1] == f"    {field.description}"
