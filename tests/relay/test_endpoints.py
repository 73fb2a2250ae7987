"""The file of endpoints: its contents, the report of a mistake, and reading it again."""

import base64
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook, WebhookVerificationError
from structlog.testing import capture_logs

from credit_service.relay.endpoints import EndpointsError, EndpointsFile
from credit_service.relay.event_types import EVENT_TYPES

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()

GOOD = f"""
[[endpoint]]
name = "billing"
url = "https://billing.example.com/hook?tenant=7"
secrets = ["{SECRET}"]
types = ["entry.purchase", "balance.*"]
"""


def write(file, text):
    """Writes the file as a new one, so that a change is seen even at the same time."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "endpoints.toml"
    path.write_text(GOOD)
    return path


def test_an_endpoint_has_the_values_of_the_file(file):
    endpoint = EndpointsFile(file, private=False).endpoints["billing"]
    assert endpoint.url.hostname == "billing.example.com"
    assert endpoint.types == {
        "entry.purchase",
        "balance.low",
        "balance.recovered",
        "balance.depleted",
    }
    assert endpoint.shown_url == "https://billing.example.com"
    assert not endpoint.from_beginning


def test_a_star_chooses_every_type(file):
    write(file, GOOD.replace('["entry.purchase", "balance.*"]', '["*"]'))
    endpoint = EndpointsFile(file, private=False).endpoints["billing"]
    assert endpoint.types == set(EVENT_TYPES)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('name = "billing"', 'name = "Billing"', "endpoint 1 (Billing) needs a name of"),
        ('name = "billing"', "", "endpoint 1 lacks name"),
        ("https://", "http://", "is not https; with CREDIT_WEBHOOKS_PRIVATE=true"),
        ("https://", "ftp://", "is not https"),
        ("https://", "https://me:word@", "without a user"),
        ("?tenant=7", "#top", "without a user and a #"),
        ("billing.example.com/", "bücher.example/", "in ASCII"),
        ("billing.example.com/", "billing.example.com:99999/", "needs a url such as"),
        ("billing.example.com/", ":443/", "needs a url such as"),
        ("entry.purchase", "entry.purchas", "did you mean entry.purchase?"),
        ("balance.*", "balanc.*", "is not a type of event"),
        ("balance.*", "bal*", "use *, balance.*, credits.*, entry.*"),
        ('["entry.purchase", "balance.*"]', "[]", "needs types: a list of texts"),
        (f'["{SECRET}"]', "[]", "needs secrets: a list of 1 to 5"),
        (SECRET, "secret", "not whsec_ and 24 to 64 bytes in Base64"),
        (SECRET, "whsec_" + base64.b64encode(bytes(23)).decode(), "24 to 64 bytes"),
        (SECRET, "whsec_" + base64.b64encode(bytes(65)).decode(), "24 to 64 bytes"),
        (f'"{SECRET}"', '{ env = "UNSET_SECRET" }', "of env UNSET_SECRET, which is not set"),
        (f'"{SECRET}"', '{ file = "none" }', "of file none, which cannot be read"),
        ("types", "kinds", "has an unknown key kinds"),
        ("[[endpoint]]", "[endpoint]", "must hold [[endpoint]] tables"),
        ("[[endpoint]]", "[[endpoints]]", "must hold [[endpoint]] tables"),
        ("[[endpoint]]", "[[endpoint]", "is not TOML"),
        ("types", 'start = "then"\ntypes', "neither now nor beginning"),
        ("types", 'ca = "none.pem"\ntypes', "not a file of authorities"),
    ],
)
def test_a_mistake_is_named_without_the_secret(file, old, new, problem):
    assert old in GOOD
    write(file, GOOD.replace(old, new, 1))
    with pytest.raises(EndpointsError) as error:
        EndpointsFile(file, private=False)
    assert problem in str(error.value)
    assert SECRET not in str(error.value)


def test_two_endpoints_of_one_name_are_refused(file):
    write(file, GOOD + GOOD)
    with pytest.raises(EndpointsError, match="names billing twice"):
        EndpointsFile(file, private=False)


def test_a_private_network_may_use_http(file):
    write(file, GOOD.replace("https://", "http://"))
    assert EndpointsFile(file, private=True).endpoints["billing"].url.scheme == "http"


def test_secrets_may_come_from_the_environment_and_from_files(file, tmp_path, monkeypatch):
    monkeypatch.setenv("BILLING_SECRET", SECRET)
    (tmp_path / "next").write_text(OTHER + "\n")
    listed = '{ env = "BILLING_SECRET" }, { file = "next" }'
    write(file, GOOD.replace(f'"{SECRET}"', listed))
    endpoint = EndpointsFile(file, private=False).endpoints["billing"]
    assert len(endpoint.secrets) == 2


def test_while_secrets_change_a_receiver_with_either_verifies_a_request(file):
    write(file, GOOD.replace(f'"{SECRET}"', f'"{OTHER}", "{SECRET}"'))
    endpoint = EndpointsFile(file, private=False).endpoints["billing"]
    now = datetime.now(UTC)
    headers = {
        "webhook-id": "1.u.2.entry.purchase",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": endpoint.signature("1.u.2.entry.purchase", now, '{"a":1}'),
    }
    for secret in (SECRET, OTHER):
        assert Webhook(secret).verify('{"a":1}', headers) == {"a": 1}
    third = "whsec_" + base64.b64encode(bytes(32)).decode()
    with pytest.raises(WebhookVerificationError):
        Webhook(third).verify('{"a":1}', headers)


def test_a_changed_file_is_read_again_and_the_changed_endpoints_are_reported(file):
    endpoints = EndpointsFile(file, private=False)
    assert endpoints.reload() == set()
    second = GOOD.replace("billing", "shop")
    write(file, GOOD + second)
    assert endpoints.reload() == {"shop"}
    write(file, GOOD.replace("tenant=7", "tenant=8") + second)
    assert endpoints.reload() == {"billing"}
    write(file, second)
    assert endpoints.reload() == {"billing"}
    assert endpoints.endpoints.keys() == {"shop"}


def test_a_changed_file_of_a_secret_changes_its_endpoint(file, tmp_path):
    write(tmp_path / "secret", SECRET)
    write(file, GOOD.replace(f'"{SECRET}"', '{ file = "secret" }'))
    endpoints = EndpointsFile(file, private=False)
    write(tmp_path / "secret", OTHER)
    assert endpoints.reload() == {"billing"}


def test_a_mistake_in_a_changed_file_keeps_the_old_one_and_is_logged_once(file):
    endpoints = EndpointsFile(file, private=False)
    with capture_logs() as lines:
        write(file, GOOD.replace("entry.purchase", "entry.purchas"))
        assert endpoints.reload() == set()
        assert endpoints.reload() == set()
        file.unlink()
        assert endpoints.reload() == set()
    assert endpoints.endpoints.keys() == {"billing"}
    said = [line["problem"] for line in lines]
    assert len(said) == 2
    assert "did you mean entry.purchase?" in said[0]
    assert "No such file" in said[1]
    assert SECRET not in str(lines)
    write(file, GOOD.replace("tenant=7", "tenant=8"))
    assert endpoints.reload() == {"billing"}
