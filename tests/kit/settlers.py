"""Helpers for the tests of settling: events as Stripe lists them, and their results."""

import pytest

from stripe_bridge.catalog import Catalog, Policy
from stripe_bridge.model import Unresolved
from stripe_bridge.settle import EVENT_TYPES

POLICY = Policy(catalog=Catalog())


async def balance(client, user_id):
    return (await client.get_user_credit(user_id)).balance


async def events_about(fake, reads, *ids):
    """The events about these objects that the bridge subscribes to, oldest first."""
    listed = [each for id_ in ids for each in await fake.events(object=id_)]
    return [await reads.read(each["id"]) for each in listed if each["type"] in EVENT_TYPES]


async def requests(fake):
    return (await fake.counts())["api_requests"]


async def refuse(settling):
    with pytest.raises(Unresolved) as raised:
        await settling
    return raised.value.reason
