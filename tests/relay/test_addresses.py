"""Where events may be sent: only to globally reachable addresses, unless a setting allows more."""

import asyncio
import ipaddress
import socket
import threading

import pytest
from kit.waiting import patience

from credit_service.relay.addresses import (
    AddressRefusedError,
    NameUnknownError,
    Resolver,
    is_global,
)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "127.8.9.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::8.8.8.8",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::10.0.0.1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::8.8.8.8",
        "100::1",
        "2001::1",  # Teredo
        "2001:0:7f00:1:0:0:f5ff:fffe",
        "2001:db8::1",
        "2002:a00:1::",  # 6to4 of 10.0.0.1
        "2002:a9fe:a9fe::1",
        "3fff::1",
        "4000::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_an_address_that_is_not_globally_routable_is_refused(address):
    assert not is_global(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "2606:4700:4700::1111",
        "2a00:1450:4001:80b::200e",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
    ],
)
def test_a_globally_reachable_address_is_allowed(address):
    assert is_global(ipaddress.ip_address(address))


async def test_a_name_that_leads_to_private_and_public_addresses_leads_only_to_the_public(
    monkeypatch,
):
    places = [(socket.AF_INET, 0, 0, "", (text, 443)) for text in ("10.0.0.1", "8.8.8.8")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: places)
    resolver = Resolver()
    assert await resolver.resolve("mixed.test", 443, private=False) == ["8.8.8.8"]
    both = ["10.0.0.1", "8.8.8.8"]
    assert await resolver.resolve("mixed.test", 443, private=True) == both
    only = await resolver.resolve("mixed.test", 80, private=True, only_private=True)
    assert only == ["10.0.0.1"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "0x7f.1", "2130706433"])
async def test_every_way_to_write_this_machine_is_refused(host):
    with pytest.raises(AddressRefusedError, match="not globally routable"):
        await Resolver().resolve(host, 443, private=False)


async def test_http_to_an_address_beyond_the_private_network_is_refused():
    with pytest.raises(AddressRefusedError, match="beyond the private network"):
        await Resolver().resolve("8.8.8.8", 80, private=True, only_private=True)


async def test_an_unknown_name_is_reported():
    with pytest.raises(NameUnknownError, match="cannot be resolved"):
        await Resolver().resolve("unknown.invalid", 443, private=True)


async def test_lookups_that_hang_delay_no_other_resolver(monkeypatch):
    hang = threading.Event()
    real = socket.getaddrinfo

    def silent(host, *args, **options):
        if host == "silent.test":
            hang.wait()
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    stuck = Resolver()
    lookups = [
        asyncio.ensure_future(stuck.resolve("silent.test", 443, private=True)) for _ in range(50)
    ]
    try:
        await asyncio.sleep(0)
        async with asyncio.timeout(patience(5)):
            assert await Resolver().resolve("localhost", 443, private=True)
        assert not any(lookup.done() for lookup in lookups)
        assert sum(thread.name == "relay look-up" for thread in threading.enumerate()) <= 4
    finally:
        hang.set()
        await asyncio.gather(*lookups, return_exceptions=True)
