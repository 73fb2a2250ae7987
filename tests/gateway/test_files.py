"""The files that pages load: cached as long as allowed, and never longer."""

import gzip
import hashlib
import subprocess

import pytest
from kit.gateways import gateway_settings, running_gateway
from kit.paths import ROOT

from credit_service.gateway import files
from credit_service.gateway.files import File

NOWHERE = "127.0.0.1:9"
SCRIPT = b"export const made = 'for the test';\n" * 50
DIGEST = hashlib.sha256(SCRIPT).hexdigest()[:16]


@pytest.fixture
async def http(monkeypatch):
    made = File("credits.js", SCRIPT, gzip.compress(SCRIPT, mtime=0), DIGEST)
    monkeypatch.setattr(files, "packaged", lambda: (made,))
    settings = gateway_settings(NOWHERE, origins=("https://app.example.com",))
    async with running_gateway(settings) as gateway:
        yield gateway.http


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_a_plain_name_is_revalidated_without_sending_the_file_again(encoding, http):
    headers = {"Accept-Encoding": encoding}
    first = await http.get("/credits.js", headers=headers)
    assert first.content == SCRIPT
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    assert first.headers["cache-control"] == "no-cache"
    assert first.headers.get("content-encoding", "identity") == encoding
    assert "Accept-Encoding" in first.headers["vary"]
    known = {"If-None-Match": f'"other", W/{first.headers["etag"]}'}
    again = await http.get("/credits.js", headers=headers | known)
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert again.headers["cache-control"] == "no-cache"


async def test_a_hashed_name_is_cached_for_ever_and_has_one_content(http):
    answer = await http.get(f"/credits.{DIGEST}.js")
    assert answer.content == SCRIPT
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert (await http.get("/credits.0123456789abcdef.js")).status_code == 404


async def test_a_page_of_a_listed_origin_may_load_the_module(http):
    answer = await http.get("/credits.js", headers={"Origin": "https://app.example.com"})
    assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert "Origin" in answer.headers["vary"]
    head = await http.head("/credits.js")
    assert (head.status_code, head.content) == (200, b"")


def test_every_file_of_the_package_is_served():
    listing = ("git", "ls-files", "credit_service/gateway/static")
    listed = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True)
    names = {name.rpartition("/")[2] for name in listed.stdout.split()}
    served = {each.name: each for each in files.packaged()}
    assert names - {".gitkeep"} | {"openapi.json"} == set(served)
    for each in served.values():
        assert gzip.decompress(each.packed) == each.content


def test_the_module_is_sent_in_under_thirty_kilobytes():
    module = {each.name: each for each in files.packaged()}["credits.js"]
    assert len(module.packed) < 30 * 1024
