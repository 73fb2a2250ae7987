"""A valid request for every call."""

from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from kit.requests import payment

from credit_service.v1 import credit_service_pb2 as pb


def sound(user_id: UUID) -> dict[str, dict[str, object]]:
    """Arguments with which every call succeeds for a user with credits and a spend in place 2.

    Calls about a request for a top-up, whose id contains a time, do not: there is no such request.
    """
    write = {"user_id": str(user_id), "idempotency_key": "sound"}
    return {
        "GetUserCredit": {"user_id": str(user_id)},
        "PurchaseCredits": write | {"amount": 5, "payment": payment(f"pi:{user_id}")},
        "SpendCredits": write | {"amount": 5},
        "RefundCredits": write | {"transaction_id": f"{user_id}-2", "amount": 1},
        "GetTransactionHistory": {"user_id": str(user_id)},
        "GetTransaction": {"user_id": str(user_id), "idempotency_key": "spent"},
        "HoldCredits": write | {"amount": 5},
        "CaptureHold": write | {"hold_id": f"{user_id}-3", "amount": 5},
        "ReleaseHold": write | {"hold_id": f"{user_id}-3"},
        "ExtendHold": {"user_id": str(user_id), "hold_id": f"{user_id}-3"},
        "GetHold": {"user_id": str(user_id), "hold_id": f"{user_id}-3"},
        "ListHolds": {"user_id": str(user_id)},
        "BatchSpendCredits": {
            "items": [pb.BatchSpendItem(**write, amount=5)],
            "mode": pb.BATCH_MODE_ATOMIC,
        },
        "GrantCredits": write | {"amount": 5, "reason": "goodwill"},
        "AdjustCredits": write | {"amount": -5, "reason": "a slip"},
        "RevokeGrant": write | {"grant_id": f"{user_id}-5", "reason": "withdrawn"},
        "ListGrants": {"user_id": str(user_id)},
        "GetLiabilityReport": {},
        "ReversePurchase": {
            "payment_ref": f"sold:{user_id}",
            "reversal_ref": f"re:{user_id}",
            "revision": 1,
            "reversed_minor": 1,
            "paid_minor": 5,
            "currency": "eur",
            "reason": "refund",
        },
        "SetAccountPolicy": {"user_id": str(user_id), "frozen": True},
        "GetUsageReport": {
            "start_time": Timestamp(seconds=1),
            "end_time": Timestamp(seconds=86_400),
        },
        "ListAccounts": {"in_debt": True},
        "ListTopUps": {"user_id": str(user_id)},
        "NoteTopUp": {
            "user_id": str(user_id),
            "top_up_id": f"{user_id}-t1-1",
            "payment_ref": "pi_1",
        },
        "FailTopUp": {
            "user_id": str(user_id),
            "top_up_id": f"{user_id}-t1-1",
            "try_number": 1,
            "reason": "declined",
            "failure": pb.TOP_UP_FAILURE_TRY_AGAIN,
        },
        "ListPrices": {},
        "QuoteCost": {"user_id": str(user_id), "items": [pb.Charge(operation="render")]},
    }
