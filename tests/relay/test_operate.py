"""What operators ask of the relay, beside the program that prints it."""

from uuid import UUID

import pytest
from kit.relays import endpoint, write_endpoints

from credit_service.database.postgres import Address
from credit_service.ledger.read_connections import ReadPool
from credit_service.relay.endpoints import EndpointsFile
from credit_service.relay.operate import Operator


@pytest.mark.parametrize("kind", range(5))
async def test_every_kind_of_dead_event_is_sent_again_by_the_id_it_is_listed_with(
    database, tmp_path, kind
):
    file = tmp_path / "endpoints.toml"
    write_endpoints(file, endpoint("one", 1))
    await database.execute(
        "INSERT INTO credit_parked_events (endpoint, user_id, tx, kind, number, type, parked_at,"
        " tries, problem, dead_at) VALUES ('one', $1, 7, $2, 3, 'some.type', now(), 9, 'x', now())",
        UUID(int=0),
        kind,
    )
    said = []
    pool = ReadPool(Address(database.service_url), 1)
    await pool.open()
    try:
        operator = Operator(pool, EndpointsFile(file, private=True).endpoints, said.append)
        await operator.show("one", events=True)
        name = said[-1].split()[1]
        await operator.retry("one", name)
    finally:
        await pool.close()
    assert said[-1] == "1 event is sent again"
