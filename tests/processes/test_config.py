"""The settings: the values that each takes or refuses, the words of refusals, and their effects."""

import os
from datetime import timedelta

import pytest

from credit_service import cli, config
from credit_service.rules.grant_values import Allowance
from credit_service.rules.pricing import Price
from credit_service.runtime.environment import ConfigurationError

TLS = {"CREDIT_TLS_CERTIFICATE": "/c.pem", "CREDIT_TLS_KEY": "/k.pem"}
CALLERS = {"CREDIT_IDENTITIES": "/callers.toml"}


@pytest.fixture
def read(monkeypatch):
    """Reads the settings from these variables and no others of ours."""
    for name in os.environ:
        if name.startswith("CREDIT_"):
            monkeypatch.delenv(name)

    def read(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return config.read()

    return read


@pytest.fixture
def refused(read, monkeypatch, capsys):
    """Starts the command line with these variables; returns the one line of its refusal."""

    def refused(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            cli.main(["settings"])
        assert end.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("credit-service: ")
        return line.removeprefix("credit-service: ")

    return refused


def test_without_any_variable_the_service_listens_on_this_machine_only(read):
    settings = read()
    assert settings.on_loopback
    assert settings.database_url is None
    assert settings.adds_users


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("CREDIT_LISTEN", "localhost:0", "localhost:0"),
        ("CREDIT_LISTEN", "[::1]:50051", "[::1]:50051"),
        ("CREDIT_LISTEN", "127.0.0.2:65535", "127.0.0.2:65535"),
        ("CREDIT_HEALTH_LISTEN", "0.0.0.0:8080", "0.0.0.0:8080"),
        ("CREDIT_HEALTH_LISTEN", "[::]:8080", "[::]:8080"),
        ("CREDIT_USERS", "managed", "managed"),
        ("CREDIT_COST_PER_RENDER", "1000000000000", 10**12),
        ("CREDIT_MIN_BALANCE", "-1000000000000", -(10**12)),
        ("CREDIT_ALLOWANCE", "1000000000000/week", "1000000000000/week"),
        ("CREDIT_REFUND_GRACE", "366d", "366d"),
        ("CREDIT_ALLOW_PLAINTEXT", "true", True),
        ("CREDIT_LANES", "64", 64),
        ("CREDIT_STATEMENT_CACHE", "0", 0),
        ("CREDIT_DRAIN_SECONDS", "0.5", 0.5),
        ("CREDIT_METRICS_PORT", "9090", 9090),
        ("CREDIT_LOG_LEVEL", "debug", "debug"),
    ],
)
def test_a_variable_sets_its_setting(read, variable, text, value):
    assert getattr(read(**{variable: text}), variable.removeprefix("CREDIT_").lower()) == value


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://role:secret@host/database",
        "postgres://role@host:5432/database",
        "postgresql://role:s%2Fe%40c@[::1]:5432/database?sslmode=require",
        "postgresql://role@/database?host=/run/postgresql",
        "postgresql://role:secret@first:5432,second:5433/database",
        "postgresql:///database",
    ],
)
def test_a_url_of_postgresql_is_taken_as_it_is(read, url):
    settings = read(CREDIT_DATABASE_URL=url, CREDIT_MIGRATE_URL=url)
    assert settings.database_url.get_secret_value() == url
    assert settings.migrate_url.get_secret_value() == url
    assert not settings.adds_users


def test_the_rules_take_their_terms_from_the_settings(read):
    terms = read().terms()
    assert (terms.allowance, terms.refund_grace) == (None, timedelta(days=7))
    assert terms.alert_below is None
    terms = read(
        CREDIT_ALLOWANCE="20/month",
        CREDIT_REFUND_GRACE="12h",
        CREDIT_MIN_BALANCE="-5",
        CREDIT_OPEN_HOLDS="3",
        CREDIT_ALERT_BELOW="20",
    ).terms()
    assert terms.allowance == Allowance(20, "month")
    assert terms.refund_grace == timedelta(hours=12)
    assert (terms.min_balance, terms.open_holds, terms.alert_below) == (-5, 3, 20)


WORDS = {
    "host": "must be host:port, such as 127.0.0.1:50051 or [::]:50051",
    "url": "must be postgresql://role:password@host:port/database, with special characters in the"
    " password written as %xx, such as %2F for /",
    "whole": "should be a valid integer",
    "number": "should be a valid number",
    "truth": "should be a valid boolean",
    "json": 'must be JSON such as {"mastering": {"cost": 20, "unit": "track"}}',
    "set": "is empty; give it a value or unset it",
}

BAD = [
    *(
        (variable, text, WORDS["host"])
        for variable in ("CREDIT_LISTEN", "CREDIT_HEALTH_LISTEN")
        for text in (
            *("50051", ":50051", "localhost", "localhost:", "localhost:x", "localhost:65536"),
            *("localhost:-1", "localhost:²", "::1:50051", "[::1]", "[x]:1", "a b:1", "unix:/a"),
        )
    ),
    *(
        (variable, text, WORDS["url"])
        for variable in ("CREDIT_DATABASE_URL", "CREDIT_MIGRATE_URL")
        for text in (
            *("hunter2", "mysql://role:hunter2@host/db", "host=here password=hunter2"),
            *("postgresql://role:hunter2@host:x/db", "postgresql://role:hunter2@host:99999/db"),
            *("postgresql://role:hun/ter2@host/db", "postgresql://role:hunter2@[::1/db"),
            *("postgresql://role:hunter2@a:1,/db", "postgresql://role:hunter2@a:1:2/db"),
        )
    ),
    ("CREDIT_USERS", "all", "should be 'existing' or 'managed'"),
    ("CREDIT_COST_PER_STEM_SEPARATION", "0", "greater than or equal to 1"),
    ("CREDIT_COST_PER_RENDER", "five", WORDS["whole"]),
    ("CREDIT_COST_PER_RENDER", "1000000000001", "less than or equal to 1000000000000"),
    ("CREDIT_COST_PER_RENDER", "1.5", WORDS["whole"]),
    ("CREDIT_OTHER_PRICES", "mastering=20", WORDS["json"]),
    ("CREDIT_OTHER_PRICES", "[]", "should be a valid dictionary"),
    ("CREDIT_OTHER_PRICES", '{"mix": 3}', "mix: Input should be a valid dictionary"),
    ("CREDIT_OTHER_PRICES", '{"mix": {"cost": 3}}', "mix.unit: Field required"),
    ("CREDIT_OTHER_PRICES", '{"mix": {"cost": 0, "unit": "a"}}', "mix.cost: Input should be"),
    ("CREDIT_OTHER_PRICES", '{"mix": {"cost": 1, "unit": ""}}', "mix.unit: String should have"),
    ("CREDIT_OTHER_PRICES", '{"mix": {"cost": 1, "unit": "a", "b": 1}}', "mix.b: Extra inputs"),
    ("CREDIT_OTHER_PRICES", '{"A mix": {"cost": 1, "unit": "a"}}', "'A mix' is not a name for an"),
    ("CREDIT_OTHER_PRICES", '{"render": {"cost": 1, "unit": "a"}}', "set CREDIT_COST_PER_RENDER"),
    (
        "CREDIT_OTHER_PRICES",
        '{"stem_separation": {"cost": 1, "unit": "a"}}',
        "set CREDIT_COST_PER_STEM_SEPARATION for stem_separation",
    ),
    ("CREDIT_MIN_BALANCE", "1.5", WORDS["whole"]),
    ("CREDIT_MIN_BALANCE", "-1000000000001", "greater than or equal to -1000000000000"),
    *(
        ("CREDIT_ALLOWANCE", text, "must be credits per day, week or month, such as 20/month")
        for text in ("20", "0/month", "20/year", "-5/day", "1000000000001/day", "20 / month")
    ),
    *(
        ("CREDIT_REFUND_GRACE", text, "must be hours or days, such as 12h or 7d")
        for text in ("7", "0d", "7 days", "367d", "-1d", "9999d")
    ),
    ("CREDIT_TLS_CERTIFICATE", "/c.pem", "CREDIT_TLS_KEY go together; set both"),
    ("CREDIT_TLS_KEY", "/k.pem", "CREDIT_TLS_KEY go together; set both"),
    ("CREDIT_TLS_CLIENT_CA", "/ca.pem", "needs CREDIT_TLS_CERTIFICATE and CREDIT_TLS_KEY"),
    ("CREDIT_ALLOW_PLAINTEXT", "perhaps", WORDS["truth"]),
    ("CREDIT_LANES", "0", "greater than or equal to 1"),
    ("CREDIT_LANES", "65", "less than or equal to 64"),
    ("CREDIT_LANE_QUEUE", "0", "greater than or equal to 1"),
    ("CREDIT_LANE_BATCH", "1001", "less than or equal to 1000"),
    ("CREDIT_POOL_SIZE", "101", "less than or equal to 100"),
    ("CREDIT_STATEMENT_CACHE", "-1", "greater than or equal to 0"),
    ("CREDIT_CALLS_IN_FLIGHT", "0", "greater than or equal to 1"),
    ("CREDIT_DRAIN_SECONDS", "0", "greater than 0"),
    ("CREDIT_DRAIN_SECONDS", "soon", WORDS["number"]),
    ("CREDIT_DRAIN_SECONDS", "inf", "less than or equal to 86400"),
    ("CREDIT_CONNECTION_AGE_SECONDS", "nan", "less than or equal to 86400"),
    ("CREDIT_CONNECTION_AGE_SECONDS", "1e9", "less than or equal to 86400"),
    ("CREDIT_METRICS_PORT", "0", "greater than or equal to 1"),
    ("CREDIT_METRICS_PORT", "65536", "less than or equal to 65535"),
    ("CREDIT_LOG_LEVEL", "loud", "should be 'debug', 'info', 'warning' or 'error'"),
    ("CREDIT_LOG_FORMAT", "xml", "should be 'auto', 'json' or 'console'"),
    *((config.variable(name), "", WORDS["set"]) for name in config.Settings.model_fields),
    ("CREDIT_DATA_DIR", " ", WORDS["set"]),
]


@pytest.mark.parametrize(("variable", "text", "problem"), BAD)
def test_a_value_that_cannot_be_used_is_refused_in_one_line(refused, variable, text, problem):
    line = refused(**{variable: text})
    assert variable in line
    assert problem in line
    assert "hunter2" not in line


def test_all_mistakes_are_reported_at_once(refused):
    line = refused(CREDIT_LANES="0", CREDIT_USERS="all", CREDIT_POOL_SIZE="many")
    assert all(name in line for name in ("CREDIT_LANES", "CREDIT_USERS", "CREDIT_POOL_SIZE"))


def test_the_variables_of_the_gateway_are_left_to_the_gateway(read):
    assert read(CREDIT_GATEWAY_LISTEN="127.0.0.1:1", CREDIT_GATEWAY_STREAMS="none").listen == (
        config.Settings.model_fields["listen"].default
    )


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("CREDIT_LISTN", "CREDIT_LISTEN"),
        ("CREDIT_DATABASE", "CREDIT_DATABASE_URL"),
        ("CREDIT_COST_PER_RENDERING", "CREDIT_COST_PER_RENDER"),
        ("credit_listen", "CREDIT_LISTEN"),
        ("CREDIT_FAVOURITE_COLOUR", None),
        # Only the gateway's prefix is reserved.
        ("CREDIT_GATWAY_LISTEN", "CREDIT_HEALTH_LISTEN"),
        ("credit_gateway_listen", "CREDIT_HEALTH_LISTEN"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_name(refused, unknown, meant):
    line = refused(**{unknown: "127.0.0.1:1"})
    assert f"unknown setting {unknown}" in line
    assert "`credit-service settings` lists the known ones" in line
    assert ("did you mean" in line) is (meant is not None)
    assert meant is None or f"did you mean {meant}?" in line


def test_variables_without_our_prefix_are_ignored(read):
    assert read(CREDITS="1", LISTEN="x", MY_CREDIT_LANES="9").lanes == 1


BEYOND = ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "example.com:1", "[2001:db8::1]:1"]


@pytest.mark.parametrize("listen", BEYOND)
def test_beyond_loopback_it_wants_tls_and_callers(read, refused, listen):
    no_tls = "is beyond loopback and there is no TLS"
    assert f"{listen} {no_tls}; set CREDIT_TLS_CERTIFICATE" in refused(CREDIT_LISTEN=listen)
    assert no_tls in refused(**CALLERS)
    with pytest.raises(ConfigurationError, match="CREDIT_TLS_KEY go together"):
        read(CREDIT_TLS_CERTIFICATE="/c.pem")
    assert read(**TLS).listen == listen


@pytest.mark.parametrize("listen", BEYOND)
def test_beyond_loopback_it_never_serves_unknown_callers(read, refused, listen):
    no_callers = "is beyond loopback and no callers are known; set CREDIT_IDENTITIES"
    assert no_callers in refused(CREDIT_LISTEN=listen, **TLS)
    assert no_callers in refused(CREDIT_ALLOW_PLAINTEXT="true")
    assert read(**CALLERS).listen == listen


def test_plaintext_beyond_loopback_must_be_allowed_by_a_setting(read, refused):
    beyond = {"CREDIT_LISTEN": "0.0.0.0:1", **CALLERS}
    assert "CREDIT_ALLOW_PLAINTEXT=true" in refused(**beyond)
    assert "there is no TLS" in refused(CREDIT_ALLOW_PLAINTEXT="false")
    assert read(CREDIT_ALLOW_PLAINTEXT="true").tls_certificate is None


def test_the_price_list_holds_both_operations_and_the_others(read):
    settings = read(
        CREDIT_COST_PER_STEM_SEPARATION="12",
        CREDIT_COST_PER_RENDER="7",
        CREDIT_OTHER_PRICES='{"mastering": {"cost": 20, "unit": "track"}}',
    )
    assert settings.price_list().prices == {
        "stem_separation": Price(12, "separation"),
        "render": Price(7, "render"),
        "mastering": Price(20, "track"),
    }
