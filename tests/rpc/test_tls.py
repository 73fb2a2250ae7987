"""TLS: callers identified by certificate, and renewal of certificates while the service runs."""

import contextlib
import datetime as dt
import hashlib
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import structlog
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from kit.programs import free_port
from kit.refusals import refused
from kit.requests import payment
from kit.services import running, server_settings
from kit.waiting import eventually, patience

from credit_service.client import CreditClient
from credit_service.rpc.access import Authenticator
from credit_service.rpc.tls import CertificateError, ServerCertificate
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

pytestmark = pytest.mark.shared

WORKER, BRIDGE = "spiffe://credits.example/worker", "bridge.credits.example"

IDENTITIES = f"""
[[identity]]
name = "the-worker"
role = "worker"
certificate = "{WORKER}"

[[identity]]
name = "the-bridge"
role = "bridge"
certificate = "{BRIDGE}"

[[identity]]
name = "the-operator"
role = "operator"
token_sha256 = "{hashlib.sha256(b"a token").hexdigest()}"
"""

TOKEN = (("authorization", "Bearer a token"),)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key in PEM."""

    chain: bytes
    key: bytes

    def store(self, files):
        files.chain.write_bytes(self.chain)
        files.key.write_bytes(self.key)


class Authority(trustme.CA):
    """Issues certificates with exactly the names, and for the days, that a test asks for."""

    @property
    def pem(self):
        return self.cert_pem.bytes()

    def issue(self, *names, common_name="", days=(-1, 1)):
        signer = serialization.load_pem_private_key(self.private_key_pem.bytes(), None)
        key = ec.generate_private_key(ec.SECP256R1())
        start, end = (dt.datetime.now(dt.UTC) + dt.timedelta(days=day) for day in days)
        subject = [x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)] if common_name else []
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(x509.load_pem_x509_certificate(self.pem).subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return Pair(
            builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )

    def issue_to_server(self):
        named = self.issue_cert("127.0.0.1")
        return Pair(
            b"".join(part.bytes() for part in named.cert_chain_pems), named.private_key_pem.bytes()
        )


def uri(text):
    return x509.UniformResourceIdentifier(text)


def dns(text):
    return x509.DNSName(text)


@dataclass(frozen=True)
class Files:
    """Where a test keeps what the service reads."""

    chain: Path
    key: Path
    client_ca: Path
    identities: Path


@pytest.fixture
def authority():
    return Authority()


@pytest.fixture
def files(tmp_path, authority):
    files = Files(*(tmp_path / name for name in ("chain.pem", "key.pem", "ca.pem", "callers.toml")))
    authority.issue_to_server().store(files)
    files.client_ca.write_bytes(authority.pem)
    files.identities.write_text(IDENTITIES)
    return files


@contextlib.asynccontextmanager
async def secure_service(database, files, *, mutual, **changes):
    certificate = ServerCertificate(files.chain, files.key, files.client_ca if mutual else None)
    settings = server_settings(
        database.service_url,
        certificate=certificate,
        authenticator=Authenticator(files.identities),
        **changes,
    )
    async with running(settings) as service:
        yield service


@contextlib.asynccontextmanager
async def connected(service, trusted, pair=None):
    """A new connection of a caller that trusts an authority and may show a certificate."""
    credentials = grpc.ssl_channel_credentials(
        trusted.pem, pair.key if pair else None, pair.chain if pair else None
    )
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.secure_channel(service.target, credentials, options) as channel:
        yield pb_grpc.CreditServiceStub(channel)


async def prices(service, trusted, pair=None, metadata=()):
    """Makes a call that every known caller may make, over a new connection."""
    async with connected(service, trusted, pair) as stub:
        return await stub.ListPrices(
            pb.ListPricesRequest(), metadata=metadata, timeout=patience(10)
        )


async def refusal(service, trusted, pair=None, metadata=()):
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await prices(service, trusted, pair, metadata)
    return refused(failure.value)


async def test_a_token_is_enough_over_the_servers_tls(database, files, authority):
    async with secure_service(database, files, mutual=False) as service:
        credentials = grpc.ssl_channel_credentials(authority.pem)
        async with CreditClient(service.target, token="a token", credentials=credentials) as client:
            bought = await client.purchase_credits(await database.user(), 5, payment=None)
        assert bought.transaction.caller == "the-operator"
        assert (await refusal(service, authority)).code is grpc.StatusCode.UNAUTHENTICATED


async def test_an_unrequested_certificate_identifies_no_caller(database, files, authority):
    async with secure_service(database, files, mutual=False) as service:
        answer = await refusal(service, authority, authority.issue(uri(WORKER)))
        assert answer.code is grpc.StatusCode.UNAUTHENTICATED


async def test_the_service_proves_who_it_is(database, files):
    async with secure_service(database, files, mutual=False) as service:
        answer = await refusal(service, Authority(), metadata=TOKEN)
        assert answer.code is grpc.StatusCode.UNAVAILABLE
        assert "CERTIFICATE_VERIFY_FAILED" in answer.message


async def test_a_client_without_tls_gets_no_answer(database, files):
    async with secure_service(database, files, mutual=False) as service:
        async with grpc.aio.insecure_channel(service.target) as channel:
            stub = pb_grpc.CreditServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await stub.ListPrices(pb.ListPricesRequest(), metadata=TOKEN, timeout=patience(10))
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_one_name_in_a_certificate_is_the_caller(database, files, authority):
    user_id = str(await database.user(10))
    spend = pb.SpendCreditsRequest(user_id=user_id, amount=1, idempotency_key="1")
    buy = pb.PurchaseCreditsRequest(
        user_id=user_id, amount=1, idempotency_key="2", payment=payment()
    )
    async with secure_service(database, files, mutual=True) as service:
        async with connected(service, authority, authority.issue(uri(WORKER))) as stub:
            spent = await stub.SpendCredits(spend, timeout=patience(10))
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await stub.PurchaseCredits(buy, timeout=patience(10))
        assert spent.transaction.caller == "the-worker"
        assert failure.value.code() is grpc.StatusCode.PERMISSION_DENIED
        async with connected(service, authority, authority.issue(dns(BRIDGE))) as stub:
            bought = await stub.PurchaseCredits(buy, timeout=patience(10))
        assert bought.transaction.caller == "the-bridge"


async def test_a_certificate_with_another_number_of_names_or_an_unknown_one_is_refused(
    database, files, authority
):
    exactly_one = "The certificate must hold exactly one URI or DNS name."
    none = "Send `authorization: Bearer <token>` or a client certificate."
    unknown = "The name in this certificate is not known here."
    async with secure_service(database, files, mutual=True) as service:
        for pair, sentence in (
            (authority.issue(uri(WORKER), dns(BRIDGE)), exactly_one),
            (authority.issue(uri(WORKER), uri("spiffe://credits.example/more")), exactly_one),
            (authority.issue(dns(BRIDGE), dns(BRIDGE)), exactly_one),
            (authority.issue(), none),
            (authority.issue(common_name=BRIDGE), none),
            (authority.issue(x509.RFC822Name(f"me@{BRIDGE}")), none),
            (authority.issue(uri("spiffe://credits.example/stranger")), unknown),
            (authority.issue(uri(WORKER + "/")), unknown),
            (authority.issue(dns("x." + BRIDGE)), unknown),
            (authority.issue(dns("*.credits.example")), unknown),
        ):
            answer = await refusal(service, authority, pair)
            assert (answer.code, answer.reason, answer.message) == (
                grpc.StatusCode.UNAUTHENTICATED,
                "UNAUTHENTICATED",
                sentence,
            )


async def test_a_certificate_that_the_client_ca_does_not_vouch_for_gets_no_connection(
    database, files, authority
):
    async with secure_service(database, files, mutual=True) as service:
        assert (await prices(service, authority, authority.issue(uri(WORKER)))).prices
        for pair in (
            None,
            Authority().issue(uri(WORKER)),
            authority.issue(uri(WORKER), days=(-2, -1)),
            authority.issue(uri(WORKER), days=(1, 2)),
        ):
            for metadata in ((), TOKEN):
                answer = await refusal(service, authority, pair, metadata)
                assert answer.code is grpc.StatusCode.UNAVAILABLE


async def test_a_token_takes_precedence_over_a_certificate(database, files, authority):
    user_id = str(await database.user())
    buy = pb.PurchaseCreditsRequest(user_id=user_id, amount=1, idempotency_key="1")
    async with (
        secure_service(database, files, mutual=True) as service,
        connected(service, authority, authority.issue(uri(WORKER))) as stub,
    ):
        bought = await stub.PurchaseCredits(buy, metadata=TOKEN, timeout=patience(10))
        assert bought.transaction.caller == "the-operator"
        unknown = (("authorization", "Bearer another token"),)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.ListPrices(pb.ListPricesRequest(), metadata=unknown, timeout=patience(10))
        assert failure.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_renewed_certificate_is_shown_to_new_connections(database, files, authority):
    newer = Authority()
    async with (
        secure_service(database, files, mutual=False) as service,
        connected(service, authority) as kept,
    ):
        await kept.ListPrices(pb.ListPricesRequest(), metadata=TOKEN, timeout=patience(10))
        newer.issue_to_server().store(files)
        assert (await prices(service, newer, metadata=TOKEN)).prices
        answer = await refusal(service, authority, metadata=TOKEN)
        assert answer.code is grpc.StatusCode.UNAVAILABLE
        assert await kept.ListPrices(pb.ListPricesRequest(), metadata=TOKEN, timeout=patience(10))


async def test_a_renewed_client_ca_decides_about_new_connections(database, files, authority):
    newer = Authority()
    old_caller, new_caller = authority.issue(uri(WORKER)), newer.issue(uri(WORKER))
    async with secure_service(database, files, mutual=True) as service:
        assert (await prices(service, authority, old_caller)).prices
        answer = await refusal(service, authority, new_caller)
        assert answer.code is grpc.StatusCode.UNAVAILABLE
        files.client_ca.write_bytes(authority.pem + newer.pem)
        assert (await prices(service, authority, old_caller)).prices
        assert (await prices(service, authority, new_caller)).prices
        files.client_ca.write_bytes(newer.pem)
        assert (await prices(service, authority, new_caller)).prices
        answer = await refusal(service, authority, old_caller)
        assert answer.code is grpc.StatusCode.UNAVAILABLE


async def test_an_unusable_renewal_leaves_the_certificate_unchanged(database, files, authority):
    newer = Authority()
    renewed = newer.issue_to_server()
    caller = authority.issue(uri(WORKER))
    good = (files.chain.read_bytes(), files.key.read_bytes(), files.client_ca.read_bytes())
    with structlog.testing.capture_logs() as log:
        async with secure_service(database, files, mutual=True) as service:
            for spoil in (
                lambda: files.chain.write_bytes(renewed.chain),  # before its key came
                lambda: files.key.write_bytes(b"garbage"),
                files.chain.unlink,
                lambda: files.client_ca.write_bytes(b"garbage"),
            ):
                spoil()
                assert (await prices(service, authority, caller)).prices
                assert (await prices(service, authority, caller)).prices
                for file, content in zip(
                    (files.chain, files.key, files.client_ca), good, strict=True
                ):
                    file.write_bytes(content)
            renewed.store(files)
            assert (await prices(service, newer, caller)).prices
    problems = [
        line["problem"] for line in log if line["event"].startswith("new certificate is unusable")
    ]
    assert len(problems) == 4, "each is logged once and not at every handshake"
    assert all(str(files.chain.parent) in problem for problem in problems)
    assert [line["event"] for line in log].count("certificate renewed") >= 1


def encrypted(pair):
    key = serialization.load_pem_private_key(pair.key, None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"a passphrase"),
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chain", b"garbage"),
        ("chain", b""),
        ("chain", None),
        ("key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        ("key", Authority().issue_to_server().key),
        ("key", encrypted(Authority().issue_to_server())),
        ("key", None),
        ("client_ca", b"garbage"),
        ("client_ca", None),
    ],
    ids=["garbage", "empty", "absent", "half", "another", "locked", "no key", "no ca", "absent ca"],
)
def test_a_start_with_files_that_cannot_be_used_names_them(files, name, content):
    file = getattr(files, name)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CertificateError, match=file.name):
        ServerCertificate(files.chain, files.key, files.client_ca).credentials()


async def test_the_health_listener_answers_health_without_tls_and_nothing_else(
    database, files, authority
):
    health_listen = f"127.0.0.1:{free_port()}"
    async with secure_service(database, files, mutual=True, health_listen=health_listen) as service:
        async with grpc.aio.insecure_channel(health_listen) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for name in ("", "credit_service.v1.CreditService"):
                answer = await health.Check(
                    health_pb2.HealthCheckRequest(service=name), timeout=patience(10)
                )
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            stub = pb_grpc.CreditServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await stub.ListPrices(pb.ListPricesRequest(), metadata=TOKEN, timeout=patience(10))
            assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                metadata=TOKEN, timeout=patience(10)
            )
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await call.read()
            assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert (await prices(service, authority, authority.issue(uri(WORKER)))).prices

    async def closed():
        async with grpc.aio.insecure_channel(health_listen) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            try:
                await health.Check(health_pb2.HealthCheckRequest(), timeout=patience(10))
            except grpc.aio.AioRpcError as failure:
                return failure.code() is grpc.StatusCode.UNAVAILABLE

    await eventually(closed)
