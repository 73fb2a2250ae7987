"""Random bytes and random messages: OK or the caller's fault, never the service's."""

import itertools
from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.databases import Database
from kit.extent import unless_long
from kit.refusals import refused
from kit.wire import (
    INT32_MAX,
    INT32_MIN,
    INT64_MAX,
    INT64_MIN,
    METHODS,
    SERVICE,
    Wire,
    request_of,
    user_with_a_spend,
)

pytestmark = pytest.mark.shared

CALLERS_FAULT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
FUZZ = settings(
    max_examples=unless_long(20, 60),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Placeholders for values that the test knows only when it runs.
KNOWN_USER, OTHER_USER = "the user", "another user"
KNOWN_SPEND, FOREIGN_SPEND = "a spend", "a spend of another user"
KNOWN_HOLD, FOREIGN_HOLD = "a hold", "a hold of another user"
NO_SPEND = "an entry that is no spend"

# Sensible values of a field. Most draws are sensible, so that many messages pass the checks of
# their shape and the others are wrong in one place only.
SENSIBLE = {
    "user_id": [KNOWN_USER, KNOWN_USER, KNOWN_USER, OTHER_USER],
    "idempotency_key": ["k1", "k2", "k3", "k4", "spent"],
    "transaction_id": [KNOWN_SPEND, KNOWN_SPEND, FOREIGN_SPEND, NO_SPEND],
    "related_transaction_id": [KNOWN_SPEND],
    "hold_id": [KNOWN_HOLD, KNOWN_HOLD, FOREIGN_HOLD, KNOWN_SPEND],
    "reason": ["goodwill"],
    "mode": [1, 2],
    "state": [0, 1, 2, 3, 4],
    "operation": ["render", "render", "stem_separation", "mastering"],
    "ref": ["pi_1", "pi_2", "pi_3"],
    "currency": ["eur", "jpy"],
    "reference": ["", "job", "Auftrag 🎛"],
    "description": ["", "Four stems"],
    "page_token": [""],
    "amount": [1, 2, 5, 40],
    "quantity": [1, 2, 3],
    "expected_cost": [1, 5, 10],
    "amount_minor": [0, 999],
    "page_size": [0, 1, 10**6],
    "history_size": [0, 1, 10**6],
    "seconds": [0, 1, 1_700_000_000],
    "nanos": [0, 1, 999_999_999],
    "types": [1, 2, 3],
}
ANYTHING = {
    "string": st.one_of(
        st.sampled_from(sorted(itertools.chain(*SENSIBLE.values()), key=str)).map(str),
        st.sampled_from(["", "\x00", "\x00" * 36, "' OR 1=1 --"]),
        st.text(max_size=600),
    ),
    "int64": st.sampled_from([0, -1, 10**12, 10**12 + 1]) | st.integers(INT64_MIN, INT64_MAX),
    "int32": st.integers(INT32_MIN, INT32_MAX),
    "enum": st.integers(INT32_MIN, INT32_MAX),
    "bool": st.booleans(),
}
KINDS = {
    FieldDescriptor.CPPTYPE_STRING: "string",
    FieldDescriptor.CPPTYPE_INT64: "int64",
    FieldDescriptor.CPPTYPE_INT32: "int32",
    FieldDescriptor.CPPTYPE_ENUM: "enum",
    FieldDescriptor.CPPTYPE_BOOL: "bool",
}


def values(field: FieldDescriptor) -> st.SearchStrategy:
    if field.message_type is not None:
        return messages(field.message_type)
    anything = ANYTHING[KINDS[field.cpp_type]]
    if field.name not in SENSIBLE:
        return anything
    sensible = st.sampled_from(SENSIBLE[field.name])
    return st.integers(0, 15).flatmap(lambda draw: anything if draw == 0 else sensible)


def messages(descriptor: Descriptor) -> st.SearchStrategy[dict[str, object]]:
    """Any message of a kind, as the keywords that make it."""
    always, sometimes = {}, {}
    for field in descriptor.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            text = st.just("fact") | ANYTHING["string"]
            value = st.dictionaries(text, text, max_size=3)
        elif field.is_repeated:
            value = st.lists(values(field), min_size=1, max_size=3)
        else:
            value = values(field)
        needed = field.name in SENSIBLE and not field.has_presence
        (always if needed or field.name == "items" else sometimes)[field.name] = value
    return st.fixed_dictionaries(always, optional=sometimes)


class Target:
    """The service that gets the random input, and the checks after each input."""

    def __init__(self, client, wire, database) -> None:
        self._client, self._wire, self._database = client, wire, database
        self._known: dict[str, str] = {}
        self._book: list[str] = []

    async def prepare(self) -> None:
        for user, spend, hold in (
            (KNOWN_USER, KNOWN_SPEND, KNOWN_HOLD),
            (OTHER_USER, FOREIGN_SPEND, FOREIGN_HOLD),
        ):
            user_id = await user_with_a_spend(self._client, self._database)
            self._known |= {user: str(user_id), spend: f"{user_id}-2", NO_SPEND: f"{user_id}-1"}
            self._known[hold] = f"{user_id}-3"
        self._book = await self._database.book()

    def _filled(self, value):
        if isinstance(value, dict):
            return {name: self._filled(part) for name, part in value.items()}
        if isinstance(value, list):
            return [self._filled(part) for part in value]
        return self._known.get(value, value) if isinstance(value, str) else value

    async def meet(self, method: str, data: bytes | dict[str, object]) -> None:
        if not isinstance(data, bytes):
            data = request_of(method)(**self._filled(data)).SerializeToString()
        try:
            await self._wire.send(method, data)
        except grpc.aio.AioRpcError as failure:
            seen = refused(failure)
            assert seen.code in CALLERS_FAULT, seen
            assert seen.reason, seen
            assert await self._database.book() == self._book, seen
        else:
            assert not await self._database.faults()
            self._book = await self._database.book()


@pytest.fixture
async def database(database) -> AsyncIterator[Database]:
    async with database.kept_open() as kept:
        yield kept


@pytest.fixture
async def wire(service) -> AsyncIterator[Wire]:
    async with grpc.aio.insecure_channel(service.target) as channel:
        yield Wire(channel)


@pytest.fixture
async def target(client, wire, database) -> Target:
    made = Target(client, wire, database)
    await made.prepare()
    return made


@FUZZ
@given(method=st.sampled_from(METHODS), data=st.binary(max_size=300))
async def test_random_bytes_are_no_trouble(target, method, data):
    await target.meet(method, data)


@pytest.mark.parametrize("method", METHODS)
@FUZZ
@given(data=st.data())
async def test_random_messages_are_no_trouble(target, method, data):
    descriptor = SERVICE.methods_by_name[method].input_type
    await target.meet(method, data.draw(messages(descriptor)))
