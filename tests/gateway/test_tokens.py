"""Identifying users: tokens that must not be accepted, and keys that change or are missing."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from uuid import UUID, uuid4, uuid5

import jwt
import pytest
from kit.issuers import API_KEY, SHARED_SECRET, Key, running_issuer
from kit.waiting import eventually, patience
from starlette.requests import Request

from credit_service.gateway import (
    JwtUsers,
    Problem,
    SupabaseUsers,
    hashed_claim,
    key_sets,
    supabase,
    uuid_claim,
)

USER = uuid4()
NAMESPACE = UUID("8b7d3a52-4a0e-4a64-9f0f-3f2d6a1c9b10")


@pytest.fixture
async def issuer():
    async with running_issuer() as issuer:
        yield issuer


@pytest.fixture
async def users(issuer):
    users = SupabaseUsers(issuer.url)
    yield users
    await users.aclose()


async def asks(users, token):
    """The user of a request with this token."""
    headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode("latin-1"))]
    user = await users(Request({"type": "http", "headers": headers}))
    return None if user is None else user.id


async def refusal(users, token):
    with pytest.raises(Problem) as refused:
        await asks(users, token)
    return refused.value.row.status, refused.value.row.reason


async def test_a_users_own_token_is_accepted_until_it_expires(issuer, users):
    token = issuer.token(USER, exp=int(time.time()) + 60)
    assert await asks(users, token) == USER
    headers = [(b"authorization", f"bearer  {token}".encode())]
    user = await users(Request({"type": "http", "headers": headers}))
    assert user.expires_at == jwt.decode(token, options={"verify_signature": False})["exp"]
    rsa = Key("RS256")
    issuer.keys.append(rsa.jwk)
    other = SupabaseUsers(issuer.url)
    assert await asks(other, rsa.signs(issuer.claims(USER))) == USER
    await other.aclose()


def unsigned(claims, **header):
    return ".".join(
        base64.urlsafe_b64encode(part).decode().rstrip("=")
        for part in (json.dumps({"alg": "none", "typ": "JWT", **header}).encode(),
                     json.dumps(claims).encode(), b"")
    )  # fmt: skip


def signed_with_the_public_key(issuer):
    """The classic attack: the public key used as the secret of HS256."""
    parts = [
        base64.urlsafe_b64encode(json.dumps(each).encode()).decode().rstrip("=")
        for each in ({"alg": "HS256", "kid": issuer.key.id}, issuer.claims(USER))
    ]
    mac = hmac.new(issuer.key.public_pem, ".".join(parts).encode(), hashlib.sha256).digest()
    return ".".join([*parts, base64.urlsafe_b64encode(mac).decode().rstrip("=")])


def tampered(issuer):
    head, _, signature = issuer.token(USER).split(".")
    body = base64.urlsafe_b64encode(json.dumps(issuer.claims(uuid4())).encode()).decode()
    return f"{head}.{body.rstrip('=')}.{signature}"


FORGED = {
    "nothing": lambda _: None,
    "no token at all": lambda _: "nonsense",
    "dots": lambda _: "..",
    "three words": lambda _: "a.b.c",
    "an API key": lambda _: "sb_secret_abcdefghijklmnop",
    "alg none": lambda issuer: unsigned(issuer.claims(USER)),
    "alg none with a key id": lambda issuer: unsigned(issuer.claims(USER), kid=issuer.key.id),
    "alg None": lambda issuer: unsigned(issuer.claims(USER), alg="None", kid=issuer.key.id),
    "HS256 with the public key": signed_with_the_public_key,
    "HS256 with the shared secret": lambda issuer: jwt.encode(
        issuer.claims(USER), SHARED_SECRET, "HS256", {"kid": issuer.key.id}
    ),
    "another's key under this id": lambda issuer: Key(key_id=issuer.key.id).signs(
        issuer.claims(USER)
    ),
    "RS256 under the id of an ES256 key": lambda issuer: Key("RS256", issuer.key.id).signs(
        issuer.claims(USER)
    ),
    "changed claims": tampered,
    "a longer token than 8 KiB": lambda issuer: issuer.token(USER, more="x" * 9000),
    "crit": lambda issuer: issuer.key.signs(issuer.claims(USER), crit=["exp"]),
    "expired": lambda issuer: issuer.token(USER, exp=int(time.time()) - 11),
    "expired long ago": lambda issuer: issuer.token(USER, exp=1),
    "expires never": lambda issuer: issuer.token(USER, exp=None),
    "expires at infinity": lambda issuer: issuer.token(USER, exp=float("inf")),
    "expires at a text": lambda issuer: issuer.token(USER, exp="tomorrow"),
    "not yet": lambda issuer: issuer.token(USER, nbf=int(time.time()) + 60),
    "made in the future": lambda issuer: issuer.token(USER, iat=int(time.time()) + 60),
    "another issuer": lambda issuer: issuer.token(USER, iss="https://evil.example.com/auth/v1"),
    "issuer with a slash more": lambda issuer: issuer.token(USER, iss=f"{issuer.name}/"),
    "no issuer": lambda issuer: issuer.token(USER, iss=None),
    "another audience": lambda issuer: issuer.token(USER, aud="anon"),
    "no audience": lambda issuer: issuer.token(USER, aud=None),
    "the service role": lambda issuer: issuer.token(USER, role="service_role"),
    "anon": lambda issuer: issuer.token(USER, role="anon"),
    "no role": lambda issuer: issuer.token(USER, role=None),
    "no subject": lambda issuer: issuer.token(USER, sub=None),
    "a subject that is no UUID": lambda issuer: issuer.token("me"),
    "a subject in braces": lambda issuer: issuer.token(f"{{{USER}}}"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
async def test_no_other_token_is_accepted(name, issuer, users):
    # Once before and once after a valid one, so that nothing cached lets it in.
    forged = FORGED[name](issuer)
    assert await asks(users, forged) is None
    assert await asks(users, issuer.token(USER)) == USER
    assert await asks(users, forged) is None


async def test_an_algorithm_that_is_not_configured_is_refused_although_its_key_is_there(
    issuer, users
):
    key = Key("ES384")
    issuer.keys.append(key.jwk)
    assert await asks(users, issuer.token(USER)) == USER
    assert await asks(users, key.signs(issuer.claims(USER))) is None


@pytest.mark.parametrize("where", ["jku", "x5u", "jwk"])
async def test_a_token_that_brings_its_own_key_is_not_accepted(where, issuer, users):
    key = Key(key_id=issuer.key.id)
    brings = {"jku": f"{issuer.url}/elsewhere", "x5u": f"{issuer.url}/elsewhere", "jwk": key.jwk}
    assert await asks(users, key.signs(issuer.claims(USER), **{where: brings[where]})) is None
    assert issuer.fetches == 1
    # The header alone does no harm: a valid signature stays valid.
    assert (
        await asks(users, issuer.key.signs(issuer.claims(USER), **{where: brings[where]})) == USER
    )


async def test_a_token_expires_although_it_was_verified_before(issuer, users):
    # Still valid for a moment, by the leeway of 10 s.
    token = issuer.token(USER, exp=int(time.time()) - 7)
    assert await asks(users, token) == USER

    async def over():
        return await asks(users, token) is None

    await eventually(over)


async def test_anonymous_users_are_refused_unless_they_are_allowed(issuer, users):
    token = issuer.token(USER, is_anonymous=True)
    assert await refusal(users, token) == (403, "ANONYMOUS_USER")
    wanted = SupabaseUsers(issuer.url, anonymous=True)
    assert await asks(wanted, token) == USER
    await wanted.aclose()


async def test_keys_are_fetched_once_for_all_waiting_requests(issuer, users):
    issuer.mode = "hangs"
    waiting = [asyncio.create_task(asks(users, issuer.token(USER))) for _ in range(50)]
    await eventually(lambda: issuer.fetches)
    issuer.released.set()
    assert set(await asyncio.gather(*waiting)) == {USER}
    assert issuer.fetches == 1


async def test_a_rotated_key_is_found_at_once_and_the_old_one_forgotten(issuer, users):
    old = issuer.token(USER)
    assert await asks(users, old) == USER
    issuer.rotates()
    assert await asks(users, issuer.token(USER)) == USER
    assert issuer.fetches == 2
    # The old token was verified by a key that is no longer there.
    assert await refusal(users, old) == (503, "ISSUER_UNAVAILABLE")


async def test_thousands_of_unknown_key_ids_fetch_the_keys_once_in_thirty_seconds(
    issuer, users, monkeypatch
):
    assert await asks(users, issuer.token(USER)) == USER
    strangers = [Key().signs(issuer.claims(USER)) for _ in range(20)]
    strangers += [issuer.key.signs(issuer.claims(USER), kid=f"key-{n}") for n in range(2000)]
    answers = []
    for token in strangers:
        try:
            answers.append(await asks(users, token))
        except Problem as problem:
            answers.append(problem.row.reason)
    # The first id was looked up; the others stay unknown until the next fetch is allowed.
    assert answers == [None] + ["ISSUER_UNAVAILABLE"] * (len(strangers) - 1)
    assert issuer.fetches == 2
    assert await asks(users, issuer.token(USER)) == USER
    monkeypatch.setattr(key_sets, "UNKNOWN_SECONDS", 0.0)
    assert await asks(users, strangers[1]) is None
    assert issuer.fetches == 3


@pytest.mark.parametrize("mode", ["away", "redirects", "large", "nonsense", "error"])
async def test_without_keys_no_token_is_judged(mode, issuer, users):
    issuer.mode = mode
    assert await refusal(users, issuer.token(USER)) == (503, "ISSUER_UNAVAILABLE")
    # A failure is not repeated for every request.
    assert await refusal(users, issuer.token(USER)) == (503, "ISSUER_UNAVAILABLE")
    assert issuer.fetches == 1


async def test_the_old_keys_serve_for_a_while_when_the_issuer_is_away(issuer, users, monkeypatch):
    token = issuer.token(USER)
    assert await asks(users, token) == USER
    issuer.mode = "away"
    monkeypatch.setattr(key_sets, "KEPT_SECONDS", 0.0)
    assert await asks(users, token) == USER
    assert issuer.fetches == 2
    assert await asks(users, issuer.token(USER)) == USER
    assert issuer.fetches == 2
    monkeypatch.setattr(key_sets, "STALE_SECONDS", 0.0)
    assert await refusal(users, token) == (503, "ISSUER_UNAVAILABLE")
    issuer.mode = "ok"
    monkeypatch.setattr(key_sets, "_AFTER_FAILURE_SECONDS", 0.0)
    monkeypatch.setattr(key_sets, "KEPT_SECONDS", 300.0)
    assert await asks(users, token) == USER


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_keys_that_are_not_for_verifying_are_left_out(issuer, users):
    short, twice, encrypting = Key("RS256", bits=1024), Key(), Key()
    second = Key(key_id=twice.id)
    secret = {"kty": "oct", "kid": "secret", "alg": "HS256", "k": "c2VjcmV0"}
    issuer.keys += [
        short.jwk,
        twice.jwk,
        second.jwk,
        {**encrypting.jwk, "use": "enc"},
        secret,
        {"kty": "EC", "kid": "broken", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kid": "of no kind"},
        {**Key().jwk, "kid": ["a list"]},
        {**Key().jwk, "alg": "none"},
        "no key",
    ]
    assert await asks(users, issuer.token(USER)) == USER
    for key in (short, twice, second, encrypting):
        assert (await asks_or_reason(users, key.signs(issuer.claims(USER)))) != USER


@pytest.mark.parametrize("uses", [None, "verify", ["verify"]])
async def test_a_key_verifies_unless_its_uses_are_listed_without_that(uses, issuer, users):
    issuer.keys = [{**issuer.key.jwk, "key_ops": uses}]
    assert await asks(users, issuer.token(USER)) == USER


async def asks_or_reason(users, token):
    try:
        return await asks(users, token)
    except Problem as problem:
        return problem.row.reason


async def test_any_issuer_can_be_configured_with_its_own_rules(issuer):
    rules = {
        "issuer": issuer.name,
        "audience": "credits",
        "jwks_url": f"{issuer.name}/.well-known/jwks.json",
        "algorithms": ("ES256",),
    }
    users = JwtUsers(**rules, user_id=uuid_claim("uid"))
    assert await asks(users, issuer.token("x", aud=["other", "credits"], uid=str(USER))) == USER
    assert await asks(users, issuer.token("x", aud="credits", uid="no uuid")) is None
    assert await asks(users, issuer.token(USER, aud="authenticated", uid=str(USER))) is None
    await users.aclose()
    hashed = JwtUsers(**rules, user_id=hashed_claim(NAMESPACE))
    made = uuid5(NAMESPACE, f"{issuer.name}\nauth0|123")
    assert await asks(hashed, issuer.token("auth0|123", aud="credits")) == made
    assert await asks(hashed, issuer.token("", aud="credits")) is None
    await hashed.aclose()


async def test_the_only_key_of_a_set_needs_no_id(issuer, users):
    lone = jwt.encode(issuer.claims(USER), issuer.key.private, "ES256")
    assert await asks(users, lone) == USER
    issuer.keys.append(Key().jwk)
    other = SupabaseUsers(issuer.url)
    assert await asks(other, lone) is None
    await other.aclose()


@pytest.mark.parametrize("algorithms", [(), ("HS256",), ("none",), ("ES256", "HS512")])
def test_only_asymmetric_algorithms_can_be_configured(algorithms):
    with pytest.raises(ValueError, match="algorithms must be"):
        JwtUsers("i", "a", "https://i/keys", algorithms=algorithms, user_id=uuid_claim())


def test_keys_are_fetched_by_tls_only():
    with pytest.raises(ValueError, match="must be https"):
        JwtUsers("i", "a", "http://i/keys", algorithms=("ES256",), user_id=uuid_claim())
    with pytest.raises(ValueError, match="must be https"):
        SupabaseUsers("http://project.supabase.co")
    with pytest.raises(ValueError, match="must be like"):
        SupabaseUsers("project.supabase.co")


@pytest.fixture
async def asking(issuer):
    """Users of a project with a shared secret, whose auth server is asked."""
    users = SupabaseUsers(issuer.url, shared_secret_project=True, api_key=API_KEY)
    yield users
    await users.aclose()


def shared(issuer, user_id, secret=SHARED_SECRET, **changes):
    return jwt.encode(issuer.claims(user_id, **changes), secret, "HS256")


async def test_the_auth_server_verifies_tokens_that_a_shared_secret_signed(issuer, asking):
    token = shared(issuer, USER)
    assert await asks(asking, token) == USER
    assert await asks(asking, token) == USER
    forged = shared(issuer, USER, "another secret of at least thirty-two bytes")
    assert await asks(asking, forged) is None
    assert await asks(asking, forged) is None
    assert issuer.asked == 2
    # The auth server is never asked about text that cannot be a token.
    for changes in (
        {"role": "service_role"},
        {"aud": "anon"},
        {"iss": "i"},
        {"exp": 1},
        {"exp": None},
    ):
        assert await asks(asking, shared(issuer, USER, **changes)) is None
    assert issuer.asked == 2
    # Tokens that a key of the set signed are verified here.
    assert await asks(asking, issuer.token(USER)) == USER
    assert issuer.asked == 2


async def test_the_auth_server_gets_at_most_eight_requests_at_once(issuer, asking, monkeypatch):
    monkeypatch.setattr(supabase, "_ASK_SECONDS", patience(5))
    tokens = [shared(issuer, uuid4()) for _ in range(50)]
    assert None not in await asyncio.gather(*(asks(asking, token) for token in tokens))
    assert issuer.asking_most <= 8


async def test_while_the_auth_server_does_not_answer_no_user_is_refused(issuer, asking):
    issuer.mode = "away"
    assert await refusal(asking, shared(issuer, USER)) == (503, "ISSUER_UNAVAILABLE")
    issuer.mode = "ok"
    assert await asks(asking, shared(issuer, USER)) == USER


async def test_a_wrong_api_key_of_the_gateway_refuses_no_user(issuer):
    users = SupabaseUsers(issuer.url, shared_secret_project=True, api_key="wrong")
    assert await refusal(users, shared(issuer, USER)) == (503, "ISSUER_UNAVAILABLE")
    await users.aclose()
    with pytest.raises(ValueError, match="api_key"):
        SupabaseUsers(issuer.url, shared_secret_project=True)
