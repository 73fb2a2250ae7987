"""The values that each field accepts, up to its limits and beyond them."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from credit_service import fields
from credit_service.errors import InvalidRequest
from credit_service.fields import AMOUNT_MAX
from credit_service.rpc import validation
from credit_service.rules.model import Payment, transaction_id
from credit_service.v1 import credit_service_pb2 as pb

USER = UUID("3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b")
OTHER_USER = UUID(int=1)


def refused(field, problem, check, *args, **options):
    """Asserts that a check names the field and says what is wrong with it."""
    with pytest.raises(InvalidRequest) as refusal:
        check(*args, **options)
    assert (refusal.value.field, refusal.value.problem) == (field, problem)


@pytest.mark.parametrize("text", [str(USER), str(USER).upper()])
def test_a_user_is_a_uuid_in_either_case(text):
    assert fields.user_id(text) == USER


@pytest.mark.parametrize(
    "text",
    [
        "alice",
        USER.hex,
        f"{{{USER}}}",
        f"urn:uuid:{USER}",
        f" {USER}",
        f"{USER}\n",
        str(USER)[:-1],
        f"{USER}0",
        str(USER).replace("3", "g", 1),
        str(USER).replace("3", "\u0663", 1),
        "3f2b8c1e9-d4a-4f6b-8a57-0c1d2e3f4a5b",
    ],
)
def test_anything_but_a_uuid_in_its_usual_form_is_refused(text):
    problem = "must be a UUID such as 3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b."
    refused("user_id", problem, fields.user_id, text)


def test_a_missing_user_is_called_missing():
    refused("user_id", "is missing.", fields.user_id, "")


@pytest.mark.parametrize("value", [1, 2, AMOUNT_MAX])
def test_an_amount_is_one_to_a_million_million(value):
    assert fields.amount(value) == value


@pytest.mark.parametrize("value", [0, -1, -(2**63), AMOUNT_MAX + 1, 2**63 - 1])
def test_any_other_amount_is_refused(value):
    problem = f"must be 1 to 1000000000000, not {value}."
    refused("amount", problem, fields.amount, value)
    refused("expected_cost", problem, fields.amount, value, "expected_cost")


@pytest.mark.parametrize("text", ["k", "spend:7:1", "a b", " ", "~", "x" * 128])
def test_a_key_is_printable_ascii(text):
    assert fields.idempotency_key(text) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is missing; make one per intent, such as spend:<job>:<attempt>."),
        ("x" * 129, "has 129 characters; the maximum is 128."),
        ("a\tb", "may hold only printable ASCII characters."),
        ("a\n", "may hold only printable ASCII characters."),
        ("\0", "may hold only printable ASCII characters."),
        ("\x7f", "may hold only printable ASCII characters."),
        ("clé", "may hold only printable ASCII characters."),
    ],
)
def test_any_other_key_is_refused(text, problem):
    refused("idempotency_key", problem, fields.idempotency_key, text)


TEXTS = [(fields.description, "description", 500), (fields.reference, "reference", 255)]


@pytest.mark.parametrize(("check", "field", "longest"), TEXTS)
@pytest.mark.parametrize("text", ["", "a mix", "für Zoë 🎧", "a\u2028b", "a\u200db"])
def test_a_text_may_hold_any_writing(check, field, longest, text):
    assert check(text) == text
    filled = text.ljust(longest, "🎧")
    assert check(filled) == filled


@pytest.mark.parametrize(("check", "field", "longest"), TEXTS)
def test_a_text_that_is_too_long_is_refused(check, field, longest):
    problem = f"has {longest + 1} characters; the maximum is {longest}."
    refused(field, problem, check, "ü" * (longest + 1))


@pytest.mark.parametrize(("check", "field", "longest"), TEXTS)
@pytest.mark.parametrize("control", ["\0", "\n", "\t", "\x1b", "\x7f", "\x85"])
def test_a_text_with_control_characters_is_refused(check, field, longest, control):
    refused(field, "must not hold control characters.", check, f"a{control}b")


@pytest.mark.parametrize(
    "pairs",
    [
        {},
        {"track": "12"},
        {"track": ""},
        {f"k{place}": "v" for place in range(20)},
        {"k": "v" * 4095},
        {"k" * 4096: ""},
        {"ü": "ü" * 2047},
    ],
    ids=[
        "none",
        "one",
        "empty value",
        "twenty",
        "4 KiB of value",
        "4 KiB of key",
        "4 KiB of bytes",
    ],
)
def test_metadata_is_up_to_twenty_pairs_and_four_kibibytes(pairs):
    assert fields.metadata(pairs) == pairs


@pytest.mark.parametrize(
    ("pairs", "problem"),
    [
        ({f"k{place}": "v" for place in range(21)}, "has 21 pairs; the maximum is 20."),
        ({"": "v"}, "has a pair without a key."),
        ({"k": "v" * 4096}, "has 4097 bytes; the maximum is 4096."),
        ({"ü": "ü" * 2048}, "has 4098 bytes; the maximum is 4096."),
        ({"a": "v" * 4000, "b": "v" * 95}, "has 4097 bytes; the maximum is 4096."),
        ({"k": "v" * 4097}, "has 4097 characters; the maximum is 4096."),
        ({"k\0": "v"}, "must not hold control characters."),
        ({"k": "v\n"}, "must not hold control characters."),
    ],
)
def test_any_other_metadata_is_refused(pairs, problem):
    refused("metadata", problem, fields.metadata, pairs)


def payment(ref="pi_1", amount_minor=999, currency="eur"):
    return pb.Payment(ref=ref, amount_minor=amount_minor, currency=currency)


@pytest.mark.parametrize("ref", ["p", "pi_1:2", "x" * 255])
@pytest.mark.parametrize("amount_minor", [0, 999, 2**63 - 1])
def test_a_payment_is_accepted_as_its_provider_names_it(ref, amount_minor):
    checked = validation.payment(payment(ref, amount_minor))
    assert checked == Payment(ref, amount_minor, "eur")


@pytest.mark.parametrize(
    ("message", "field", "problem"),
    [
        (payment(ref=""), "payment.ref", "is missing."),
        (payment(ref="x" * 256), "payment.ref", "has 256 characters; the maximum is 255."),
        (payment(ref="pi\n"), "payment.ref", "may hold only printable ASCII characters."),
        (payment(ref="é"), "payment.ref", "may hold only printable ASCII characters."),
        (payment(amount_minor=-1), "payment.amount_minor", "must not be negative."),
        *(
            (
                payment(currency=currency),
                "payment.currency",
                "must be a three-letter code in lower case such as eur.",
            )
            for currency in ("", "EUR", "eu", "euro", "e1r", "eur\n", "€ur")
        ),
    ],
)
def test_any_other_payment_is_refused(message, field, problem):
    refused(field, problem, validation.payment, message)


@pytest.mark.parametrize(
    ("message", "priced"),
    [
        (pb.Charge(operation="render"), ("render", 1)),
        (pb.Charge(operation="render", quantity=1), ("render", 1)),
        (pb.Charge(operation="mp3_320", quantity=AMOUNT_MAX), ("mp3_320", AMOUNT_MAX)),
        (pb.Charge(operation="x" * 64, quantity=2), ("x" * 64, 2)),
    ],
)
def test_a_charge_names_an_operation_and_its_quantity_is_one_by_default(message, priced):
    assert validation.charge(message, "charge") == priced


@pytest.mark.parametrize(
    ("message", "field", "problem"),
    [
        (pb.Charge(quantity=1), "items[2].operation", "is missing."),
        *(
            (
                pb.Charge(operation=operation),
                "items[2].operation",
                "must be a name of the price list such as stem_separation.",
            )
            for operation in ("Render", "1st", "_x", "stem-separation", "x y", "é", "x\n", "x" * 65)
        ),
        *(
            (
                pb.Charge(operation="render", quantity=quantity),
                "items[2].quantity",
                f"must be 1 to 1000000000000, not {quantity}.",
            )
            for quantity in (0, -1, AMOUNT_MAX + 1)
        ),
    ],
)
def test_any_other_charge_is_refused(message, field, problem):
    refused(field, problem, validation.charge, message, "items[2]")


@pytest.mark.parametrize(
    ("message", "ttl"),
    [
        (None, timedelta(minutes=15)),
        (Duration(seconds=1), timedelta(seconds=1)),
        (Duration(seconds=1, nanos=500_000_999), timedelta(seconds=1, microseconds=500_000)),
        (Duration(seconds=86_400), timedelta(days=1)),
    ],
)
def test_a_hold_lasts_a_second_to_a_day(message, ttl):
    assert validation.ttl(message) == ttl


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        (Duration(), "0"),
        (Duration(seconds=-1), "-1"),
        (Duration(nanos=999_999_999), "0.999999999"),
        (Duration(seconds=86_400, nanos=500_000_000), "86,400.5"),
        (Duration(seconds=86_401), "86,401"),
        (Duration(seconds=31_536_000), "31,536,000"),
    ],
)
def test_a_hold_for_any_other_time_is_refused_with_its_seconds(message, seconds):
    problem = f"must be 1 second to 24 hours, not {seconds} seconds."
    refused("ttl", problem, validation.ttl, message)


@pytest.mark.parametrize("seq", [0, 1, 10**15])
def test_a_transaction_id_encodes_user_and_seq(seq):
    text = transaction_id(USER, seq)
    assert validation.transaction_seq(text, USER, "transaction_id") == seq
    assert validation.transaction_seq(text, OTHER_USER, "transaction_id") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "-7",
        str(USER),
        f"{USER}-",
        f"{USER}-07",
        f"{USER}-+7",
        f"{USER}--7",
        f"{USER}-7 ",
        f"{USER}-\uff17",
        f"{USER}-7.0",
        f"{USER}-{10**16}",
        f"{str(USER).upper()}-7",
        f"{USER.hex}-7",
        f"{{{USER}}}-7",
        "alice-7",
    ],
)
def test_anything_but_a_transaction_id_as_it_was_given_out_is_refused(text):
    problem = "is not a transaction id such as 3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b-7."
    refused("related", problem, validation.transaction_seq, text, USER, "related")


@pytest.mark.parametrize(("asked", "size"), [(0, 0), (1, 1), (1000, 1000), (1001, 1000)])
def test_a_page_holds_a_thousand_at_most(asked, size):
    assert fields.page_size(asked, "page_size") == size


def test_a_negative_page_size_is_refused():
    refused("history_size", "must not be negative.", fields.page_size, -1, "history_size")


FIRST, LAST = -62135596800, 253402300799


@pytest.mark.parametrize(
    ("stamp", "down", "up"),
    [
        (Timestamp(), datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)),
        (
            Timestamp(seconds=1, nanos=2000),
            datetime(1970, 1, 1, 0, 0, 1, 2, UTC),
            datetime(1970, 1, 1, 0, 0, 1, 2, UTC),
        ),
        (
            Timestamp(seconds=1, nanos=2001),
            datetime(1970, 1, 1, 0, 0, 1, 2, UTC),
            datetime(1970, 1, 1, 0, 0, 1, 3, UTC),
        ),
        (
            Timestamp(seconds=1, nanos=999_999_999),
            datetime(1970, 1, 1, 0, 0, 1, 999_999, UTC),
            datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC),
        ),
        (
            Timestamp(seconds=-1, nanos=1),
            datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC),
            datetime(1969, 12, 31, 23, 59, 59, 1, UTC),
        ),
        (
            Timestamp(seconds=FIRST),
            datetime.min.replace(tzinfo=UTC),
            datetime.min.replace(tzinfo=UTC),
        ),
        (
            Timestamp(seconds=LAST, nanos=999_999_000),
            datetime.max.replace(tzinfo=UTC),
            datetime.max.replace(tzinfo=UTC),
        ),
    ],
)
def test_a_time_is_rounded_to_the_microseconds_of_the_book(stamp, down, up):
    assert validation.time(stamp, "as_of", round_up=False) == down
    assert validation.time(stamp, "as_of", round_up=True) == up


@pytest.mark.parametrize(
    "stamp",
    [
        Timestamp(seconds=FIRST - 1),
        Timestamp(seconds=LAST + 1),
        Timestamp(seconds=-(2**63)),
        Timestamp(seconds=2**63 - 1),
        Timestamp(nanos=-1),
        Timestamp(nanos=10**9),
    ],
)
@pytest.mark.parametrize("round_up", [False, True])
def test_a_time_beyond_the_calendar_is_refused(stamp, round_up):
    problem = "is not a time between the years 1 and 9999."
    refused("as_of", problem, validation.time, stamp, "as_of", round_up=round_up)


def test_a_time_that_rounds_beyond_the_calendar_is_refused():
    stamp = Timestamp(seconds=LAST, nanos=999_999_999)
    problem = "is not a time between the years 1 and 9999."
    refused("end_time", problem, validation.time, stamp, "end_time", round_up=True)
    assert validation.time(stamp, "end_time", round_up=False) == datetime.max.replace(tzinfo=UTC)
