"""Operators' requests to the relay, without the program that prints the answers."""

from uuid import UUID

import pytest
from kit.relays import endpoint, write_endpoints

from credit_service.database.postgres import Address
from credit_service.ledger.read_connections import ReadPool
from credit_service.relay.endpoints import EndpointsFile
from credit_service.relay.operate import Operator, UnknownError


@pytest.fixture
async def operator(database, tmp_path):
    """An operator of one endpoint, with the lines printed."""
    file = tmp_path / "endpoints.toml"
    write_endpoints(file, endpoint("one", 1))
    said = []
    pool = ReadPool(Address(database.service_url), 1)
    await pool.open()
    yield Operator(pool, EndpointsFile(file, private=True).endpoints, said.append), said
    await pool.close()


@pytest.mark.parametrize("kind", range(5))
async def test_every_kind_of_dead_event_is_sent_again_by_the_id_it_is_listed_with(
    database, operator, kind
):
    operator, said = operator
    await database.execute(
        "INSERT INTO credit_parked_events (endpoint, user_id, tx, kind, number, type, parked_at,"
        " tries, problem, dead_at) VALUES ('one', $1, 7, $2, 3, 'some.type', now(), 9, 'x', now())",
        UUID(int=0),
        kind,
    )
    await operator.show("one", events=True)
    name = said[-1].split()[1]
    await operator.retry("one", name)
    assert said[-1] == "1 event is sent again"


async def test_an_unknown_endpoint_or_event_is_refused(
    operator,
):
    operator, said = operator
    user = UUID(int=1)
    for name, event, problem in (
        ("another", None, "there is no endpoint another in the file"),
        ("another", f"1.{user}.1.entry.spend", "there is no endpoint another in the file"),
        ("one", f"1.{user}.1.entry.spend", "one has no event"),
        ("one", "garbage", "one has no event garbage"),
        ("one", f"{10**18}.{user}.1.entry.spend", "one has no event"),
    ):
        with pytest.raises(UnknownError, match=problem):
            await operator.retry(name, event)
    assert said == []
