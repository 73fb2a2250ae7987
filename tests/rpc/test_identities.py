"""The identities file: its valid contents, and how a running service reloads it."""

import os
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
import structlog
from kit.callers import EVERY_ROLE, identity, opened
from kit.waiting import eventually

from credit_service.rpc.access import Authenticator, Identities, IdentitiesError
from credit_service.v1 import credit_service_pb2 as pb


async def test_a_token_is_known_by_its_sha_256(database, tmp_path):
    # The digest of "abc" in FIPS 180-4.
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    text = f'[[identity]]\nname = "a"\nrole = "worker"\ntoken_sha256 = "{digest}"\n'
    async with opened(database, tmp_path / "identities.toml", text) as door:
        metadata = (("authorization", "Bearer abc"),)
        assert (await door.call("ListPrices", pb.ListPricesRequest(), metadata)).prices


async def test_callers_are_added_changed_and_revoked_without_a_restart(database, tmp_path):
    request = pb.SpendCreditsRequest(
        user_id=str(uuid4()), amount=1, idempotency_key="k", validate_only=True
    )

    async def code(token):
        answer = await door.refusal(
            "SpendCredits", request, (("authorization", f"Bearer {token}"),)
        )
        return answer.code

    async def becomes(token, expected):
        async def claim():
            return await code(token) is expected

        await eventually(claim)

    may, may_not = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED
    unknown = grpc.StatusCode.UNAUTHENTICATED
    first, second = identity("a", "worker", "ta"), identity("b", "worker", "tb")
    async with opened(database, tmp_path / "identities.toml", first) as door:
        assert (await code("ta"), await code("tb")) == (may, unknown)
        door.file.write_text(first + second)
        await becomes("tb", may)
        assert await code("ta") is may
        door.file.write_text(identity("a", "auditor", "ta") + second)
        await becomes("ta", may_not)
        # Editors and Kubernetes replace the file by another one, which may have the same time.
        replacement = tmp_path / "next.toml"
        replacement.write_text(second)
        then = door.file.stat().st_mtime_ns
        os.utime(replacement, ns=(then, then))
        replacement.replace(door.file)
        await becomes("ta", unknown)
        assert await code("tb") is may


async def test_an_unusable_file_leaves_the_callers_unchanged(database, tmp_path):
    async def seen(text):
        await eventually(lambda: any(text in line.get("problem", "") for line in log))

    async def known():
        metadata = (("authorization", "Bearer ta"),)
        return (await door.call("ListPrices", pb.ListPricesRequest(), metadata)).prices

    first = identity("a", "worker", "ta")
    with structlog.testing.capture_logs() as log:
        async with opened(database, tmp_path / "identities.toml", first) as door:
            door.file.write_text(identity("a", "king", "ta"))
            await seen("needs a role")
            assert await known()
            door.file.write_text("[[identity]\n")
            await seen("is not TOML")
            assert await known()
            door.file.write_text("identity = [1]\n")
            await seen("is not a table")
            assert await known()
            door.file.unlink()
            await seen("No such file")
            assert await known()
            door.file.write_text(identity("b", "worker", "tb"))
            await eventually(lambda: any(line["event"] == "identities reloaded" for line in log))
            answer = await door.refusal(
                "ListPrices", pb.ListPricesRequest(), (("authorization", "Bearer ta"),)
            )
            assert answer.code is grpc.StatusCode.UNAUTHENTICATED
    problems = [line["problem"] for line in log if "problem" in line]
    assert len(problems) == len(set(problems)) == 4
    assert all(str(tmp_path / "identities.toml") in problem for problem in problems)


def test_a_file_that_stays_unusable_is_logged_once(tmp_path):
    file = tmp_path / "identities.toml"
    file.write_text(EVERY_ROLE)
    authenticator = Authenticator(file)
    with structlog.testing.capture_logs() as log:
        for content in ("garbage", "garbage", EVERY_ROLE, EVERY_ROLE, "garbage"):
            if file.read_text() != content:
                file.write_text(content)
            authenticator.reload()
            authenticator.reload()
    seen = ["new identities are unusable, keeping the old ones", "identities reloaded"]
    assert [line["event"] for line in log] == [*seen, seen[0]]


def table(**lines):
    return "[[identity]]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())


WHOLE = {"name": '"a"', "role": '"worker"', "token_sha256": f'"{"0" * 64}"'}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must contain one or more [[identity]] tables"),
        ("[[identity]", "is not TOML"),
        ("n = " + "9" * 5000, "is not TOML"),
        ("identity = []", "must contain one or more [[identity]] tables"),
        ('identity = "a"', "must contain one or more [[identity]] tables"),
        ("identity = [1]", "identity 1 is not a table"),
        ("[identity]\nname = 'a'", "must contain one or more [[identity]] tables"),
        ("other = 1\n" + table(**WHOLE), "and nothing else"),
        (table(**WHOLE, colour='"red"'), "identity 1 has an unknown key colour"),
        (table(**{**WHOLE, "name": "1"}), "identity 1 has a value that is not a string"),
        (table(**{**WHOLE, "certificate": '""'}), "identity 1 has a value that is not a string"),
        (table(role='"worker"', token_sha256='"x"'), "identity 1 needs a name"),
        (table(**{**WHOLE, "name": '"a\\nb"'}), "identity 1 needs a name"),
        (table(**{**WHOLE, "name": '"ä"'}), "identity 1 needs a name"),
        (table(**{**WHOLE, "name": f'"{"a" * 65}"'}), "identity 1 needs a name"),
        (table(name='"a"', token_sha256='"x"'), "identity 1 (a) needs a role"),
        (table(**{**WHOLE, "role": '"king"'}), "identity 1 (a) needs a role"),
        (table(name='"a"', role='"worker"'), "needs a token_sha256 or a certificate"),
        (table(**{**WHOLE, "token_sha256": '"secret"'}), "is not 64 hex digits"),
        (table(**{**WHOLE, "token_sha256": f'"{"A" * 64}"'}), "is not 64 hex digits"),
        (table(**WHOLE) + table(**WHOLE), "names a twice"),
        (table(**WHOLE) + table(**{**WHOLE, "name": '"b"'}), "the same token_sha256"),
        (
            table(name='"a"', role='"worker"', certificate='"x"')
            + table(name='"b"', role='"worker"', certificate='"x"'),
            "the same certificate",
        ),
    ],
)
def test_a_mistake_in_the_identities_is_named(text, problem):
    with pytest.raises(IdentitiesError) as error:
        Identities.parse(text)
    assert problem in str(error.value)
    assert "secret" not in str(error.value)


def test_a_caller_may_have_a_token_and_a_certificate():
    identities = Identities.parse(table(**WHOLE, certificate='"spiffe://here/a"'))
    assert identities.by_token["0" * 64] == identities.by_certificate["spiffe://here/a"]


@pytest.mark.parametrize("make", [lambda _: None, Path.mkdir, lambda f: f.write_bytes(b"\xff")])
def test_a_file_that_cannot_be_read_is_named(make, tmp_path):
    make(tmp_path / "identities.toml")
    with pytest.raises(IdentitiesError, match=r"identities\.toml"):
        Authenticator(tmp_path / "identities.toml")
