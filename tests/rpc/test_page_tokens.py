"""Page tokens: each belongs to the request it was made for and to no other."""

import base64
from dataclasses import dataclass

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from credit_service.errors import InvalidRequest
from credit_service.rpc import page_tokens
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared

USER = "3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b"
OTHER_USER = "00000000-0000-0000-0000-000000000001"
SPEND, REFUND = pb.TRANSACTION_TYPE_SPEND, pb.TRANSACTION_TYPE_REFUND


def request(**changes):
    filters = {
        "user_id": USER,
        "types": [SPEND, REFUND],
        "start_time": Timestamp(seconds=10),
        "end_time": Timestamp(seconds=20, nanos=5),
        "reference": "job 7",
        "related_transaction_id": f"{USER}-3",
    }
    return pb.GetTransactionHistoryRequest(**filters | changes)


def with_token(asked, token):
    copy = pb.GetTransactionHistoryRequest()
    copy.CopyFrom(asked)
    copy.page_token = token
    return copy


def refused(asked, token):
    with pytest.raises(InvalidRequest) as refusal:
        page_tokens.seq_of(with_token(asked, token))
    assert refusal.value.field == "page_token"
    assert refusal.value.problem == (
        "was not made for this user and these filters; start at the first page."
    )


def test_no_token_means_the_first_page():
    assert page_tokens.seq_of(request()) is None


@pytest.mark.parametrize("seq", [1, 255, 256, 2**31, 2**63 - 1])
@pytest.mark.parametrize("asked", [request(), pb.GetTransactionHistoryRequest(user_id=USER)])
def test_a_token_says_where_to_continue(asked, seq):
    token = page_tokens.token(asked, seq)
    assert page_tokens.seq_of(with_token(asked, token)) == seq


def test_a_token_can_be_part_of_a_url():
    tokens = "".join(page_tokens.token(request(), seq) for seq in range(1, 200))
    assert set(tokens) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize(
    "same",
    [
        request(page_size=7),
        request(user_id=USER.upper()),
        request(types=[REFUND, SPEND]),
        request(types=[SPEND, REFUND, SPEND]),
    ],
    ids=["page size", "user in capitals", "types in another order", "a type twice"],
)
def test_a_token_works_for_the_same_request_written_in_another_way(same):
    assert page_tokens.seq_of(with_token(same, page_tokens.token(request(), 5))) == 5


def test_a_token_is_the_same_in_every_process_and_release():
    bare = pb.GetTransactionHistoryRequest(user_id=USER)
    assert page_tokens.token(request(), 5) == "AAAAAAAAAAUPbJNg9vJi6mlyHsA"
    assert page_tokens.token(bare, 5) == "AAAAAAAAAAWd9tAiWZCsTLEWo4g"


@dataclass(frozen=True)
class Differs:
    """Two requests that a token must distinguish."""

    one: pb.GetTransactionHistoryRequest
    other: pb.GetTransactionHistoryRequest


@pytest.mark.parametrize(
    "differs",
    [
        Differs(request(), request(user_id=OTHER_USER)),
        Differs(request(), request(types=[SPEND])),
        Differs(request(), request(types=[])),
        Differs(request(), request(start_time=Timestamp(seconds=11))),
        Differs(request(), request(start_time=Timestamp(seconds=10, nanos=1))),
        Differs(request(), request(end_time=Timestamp(seconds=21, nanos=5))),
        Differs(request(), request(end_time=Timestamp(seconds=20, nanos=6))),
        Differs(request(), request(start_time=None)),
        Differs(request(), request(end_time=None)),
        Differs(request(start_time=Timestamp()), request(start_time=None)),
        Differs(request(end_time=Timestamp()), request(end_time=None)),
        Differs(
            request(start_time=Timestamp(seconds=1), end_time=None),
            request(start_time=None, end_time=Timestamp(seconds=1)),
        ),
        Differs(request(), request(reference="job 8")),
        Differs(request(), request(reference="")),
        Differs(request(), request(related_transaction_id=f"{USER}-4")),
        Differs(request(), request(related_transaction_id="")),
        Differs(
            request(reference="ab", related_transaction_id="c"),
            request(reference="a", related_transaction_id="bc"),
        ),
    ],
    ids=[
        "user",
        "types",
        "no types",
        "start",
        "start by a nanosecond",
        "end",
        "end by a nanosecond",
        "no start",
        "no end",
        "start at the epoch",
        "end at the epoch",
        "start is not end",
        "reference",
        "no reference",
        "related transaction",
        "no related transaction",
        "text moved from field to field",
    ],
)
def test_a_token_of_another_request_is_refused(differs):
    refused(differs.other, page_tokens.token(differs.one, 5))
    refused(differs.one, page_tokens.token(differs.other, 5))


def test_a_token_changed_in_any_byte_is_refused():
    token = page_tokens.token(request(), 5)
    raw = base64.urlsafe_b64decode(token + "=")
    for place in range(len(raw)):
        forged = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        refused(request(), base64.urlsafe_b64encode(forged).decode().rstrip("="))


def test_a_shortened_or_lengthened_token_is_refused():
    token = page_tokens.token(request(), 5)
    for length in range(1, len(token)):
        refused(request(), token[:length])
    refused(request(), token + token)
    refused(request(), token + "AAAA")
    refused(request(), f"{token[:8]}\n\n\n\n{token[8:]}")


@pytest.mark.parametrize("text", ["5", "=", "====", "not a token", "é" * 27, "\n", "A" * 27, "\0"])
def test_a_text_that_was_never_a_token_is_refused(text):
    refused(request(), text)


@settings(derandomize=True)
@given(st.text(min_size=1, max_size=60))
def test_any_other_text_is_refused(text):
    refused(request(), text)
