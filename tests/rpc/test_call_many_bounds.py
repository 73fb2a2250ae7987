"""CallMany bypasses no bound, and its items are logged and counted as single calls are."""

import json

from kit import many_calls
from kit.callers import EVERY_ROLE, bearer
from kit.http2 import silent_reader
from kit.many_calls import begun, reason, request_of, spend
from kit.metrics import scrape
from kit.programs import free_port, process
from kit.services import running, server_settings
from kit.storm import connected
from kit.waiting import eventually, patience
from kit.wire import SERVICE
from prometheus_client import REGISTRY

from credit_service.rpc import many_calls as served
from credit_service.rpc import open_calls
from credit_service.v1 import credit_service_pb2 as pb

PATH = f"/{SERVICE.full_name}/CallMany"


def measured(name):
    return REGISTRY.get_sample_value(name)


async def test_each_item_is_an_open_call_and_those_beyond_the_bound_are_refused(database):
    user_id = await database.user(100)
    settings = server_settings(database.service_url, calls_in_flight=5)
    async with running(settings) as service, connected(service.target) as stub:
        for _ in range(3):
            found = await many_calls.results(stub, [spend(user_id) for _ in range(8)])
            assert [reason(result) for result in found] == [""] * 5 + ["OVERLOADED"] * 3
            await eventually(lambda: measured("credit_open_calls") == 0)
        (refused,) = [result for result in found if result.index == 7]
        assert many_calls.info(refused).metadata["retry_ms"] == "200"
    assert not await database.faults()


async def test_items_in_flight_take_the_places_of_single_calls(database):
    await database.wait_longer_for_locks()
    locked, free = await database.user(10), await database.user(10)
    settings = server_settings(database.service_url, calls_in_flight=5)
    async with running(settings) as service, connected(service.target) as stub:
        async with database.locked(locked):
            call = begun(stub, [spend(locked) for _ in range(5)], timeout=patience(20))
            await eventually(lambda: measured("credit_open_calls") == 5)
            single = await many_calls.result_of_single_call(stub, spend(free))
            assert reason(single) == "OVERLOADED"
            call.cancel()
            await eventually(lambda: measured("credit_open_calls") == 0)
        assert not reason(await many_calls.result_of_single_call(stub, spend(free)))
    assert not await database.faults()


async def test_long_results_come_in_several_responses(database, monkeypatch):
    monkeypatch.setattr(served, "RESPONSE_BYTES_MAX", 20_000)
    user_id = await database.user(100)
    metadata = {"note": "n" * 4_000}
    settings = server_settings(database.service_url, lanes=1)
    async with running(settings) as service, connected(service.target) as stub:
        items = [spend(user_id, metadata=metadata) for _ in range(40)]
        responses = await many_calls.responses(stub, items)
        assert max(response.ByteSize() for response in responses) < 20_000 + 5_000
        assert len(responses) >= 40 * 4_000 // 25_000
        indexes = [result.index for response in responses for result in response.results]
        assert sorted(indexes) == list(range(40))
        assert all(
            result.spend.transaction.metadata == metadata
            for response in responses
            for result in response.results
        )


async def test_unread_results_are_bounded_and_their_memory_is_freed(database, monkeypatch):
    """A connection that reads nothing gets its share of unsent bytes, and is closed as silent."""
    monkeypatch.setattr(open_calls, "CONNECTION_UNSENT_BYTES_MAX", 200_000)
    monkeypatch.setattr(open_calls, "_ANSWER_ROOM_BYTES", 50_000)
    monkeypatch.setattr(open_calls, "SILENCE_SECONDS_MAX", 2.0)
    user_id = await database.user(1_000)
    note = {"note": "n" * 4_000}
    items = [spend(user_id, 1, f"k{n}", metadata=note) for n in range(100)]
    # Repeated without its metadata, a request fits into one frame, and its results are as long.
    short = request_of([spend(user_id, 1, f"k{n}") for n in range(100)]).SerializeToString()
    settings = server_settings(database.service_url)
    async with (
        running(settings) as service,
        connected(service.target) as stub,
        silent_reader(service.port) as silent,
    ):
        for item in items:
            await stub.SpendCredits(item.spend)
        await silent.call(PATH, short)
        await eventually(lambda: measured("credit_unsent_bytes") > 100_000)
        # A result without room is replaced by an error, and errors are short.
        assert measured("credit_unsent_bytes") < 200_000 + 100 * 500
        assert not reason(await many_calls.result_of_single_call(stub, spend(user_id)))
        await eventually(silent.closed.is_set, seconds=30)
        await eventually(lambda: measured("credit_unsent_bytes") == 0)
        await eventually(lambda: measured("credit_open_calls") == 0)
    assert not await database.faults()


async def test_each_item_has_a_line_and_a_count_as_its_single_call(database, tmp_path):
    callers = tmp_path / "callers.toml"
    callers.write_text(EVERY_ROLE)
    port = free_port()
    user_id = await database.user(10)
    user = str(user_id)
    with process(
        CREDIT_DATABASE_URL=database.service_url,
        CREDIT_IDENTITIES=str(callers),
        CREDIT_LOG_FORMAT="json",
        CREDIT_METRICS_PORT=str(port),
    ) as program:
        async with connected(f"127.0.0.1:{program.wait_until_listening()}") as stub:
            items = [
                spend(user_id, 1, "a", description="word-of-a-description"),
                spend(user_id, 1, "a", description="word-of-a-description"),
                spend(user_id, 100, "b", metadata={"label": "word-of-metadata"}),
                many_calls.hold(user_id, 2, "c"),
                pb.CallManyItem(),
            ]
            await many_calls.results(stub, items, metadata=bearer("worker"))
            metrics = await scrape(port)

        def lines():
            found = [json.loads(line) for line in program.lines if line.startswith("{")]
            return [line for line in found if line["event"] == "call"]

        await eventually(lambda: len(lines()) == 6)
        dropped = {"timestamp", "level", "event", "ms"}
        facts = [{name: line[name] for name in line if name not in dropped} for line in lines()]
        assert "word-of" not in "".join(program.lines)
    known = {"caller": "the-worker", "many": True}
    spent = known | {"method": "SpendCredits", "user": user}
    wanted = [
        spent | {"key": "a", "outcome": "OK"},
        spent | {"key": "a", "outcome": "OK", "replayed": True},
        spent | {"key": "b", "outcome": "FAILED_PRECONDITION", "reason": "INSUFFICIENT_CREDITS"},
        known | {"method": "HoldCredits", "user": user, "key": "c", "outcome": "OK"},
        known | {"method": "CallMany", "outcome": "INVALID_ARGUMENT", "reason": "INVALID_REQUEST"},
        {"caller": "the-worker", "method": "CallMany", "outcome": "OK"},
    ]
    assert sorted(map(_as_text, facts)) == sorted(map(_as_text, wanted))
    assert metrics.all("credit_calls_total", ("method", "code", "reason")) == {
        ("SpendCredits", "OK", ""): 2,
        ("SpendCredits", "FAILED_PRECONDITION", "INSUFFICIENT_CREDITS"): 1,
        ("HoldCredits", "OK", ""): 1,
        ("CallMany", "INVALID_ARGUMENT", "INVALID_REQUEST"): 1,
        ("CallMany", "OK", ""): 1,
    }
    assert metrics.all("credit_replays_total", "method") == {"SpendCredits": 1}
    assert metrics.all("credit_refusals_total", ("method", "reason")) == {
        ("SpendCredits", "INSUFFICIENT_CREDITS"): 1,
        ("CallMany", "INVALID_REQUEST"): 1,
    }
    assert metrics.all("credit_call_seconds_count", "method") == {
        "SpendCredits": 3,
        "HoldCredits": 1,
        "CallMany": 2,
    }


def _as_text(facts):
    return json.dumps(facts, sort_keys=True)
