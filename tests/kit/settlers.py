"""What the tests of settling share: a settler, events as Stripe lists them, what has come of them.

A module takes the fixture by `settler = settlers.settler`, with `reads` of `stripe_fixtures`.
"""

import pytest

from stripe_bridge.catalog import Catalog, Policy
from stripe_bridge.model import Unresolved
from stripe_bridge.settle import EVENT_TYPES, Settler

POLICY = Policy(catalog=Catalog())


@pytest.fixture
def settler(reads, client):
    return Settler(reads, client, POLICY)


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
