"""A table of callers' mistakes in every field of every call, and requests without mistakes."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kit.requests import payment
from kit.wire import INT32_MIN, INT64_MAX, INT64_MIN

from credit_service.v1 import credit_service_pb2 as pb

HUGE = 10**12 + 1

# A caller's mistake in a field, and a word of the sentence that names it.
Mistake = tuple[dict[str, object], str, str]


def fields(text: str, *, missing: str, wrong: str, values: list[str]) -> list[Mistake]:
    return [({text: ""}, text, missing), *(({text: value}, text, wrong) for value in values)]


U = "3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b"
USER = fields(
    "user_id",
    missing="is missing",
    wrong="must be a UUID such as",
    values=[
        "42",
        "me@example.com",
        U.replace("-", ""),
        f"{{{U}}}",
        f"urn:uuid:{U}",
        f" {U}",
        f"{U}\n",
        U[:-1],
        U + "0",
        U.replace("3f2b", "3g2b"),
        U.replace("3", "\u0663"),
        U.replace("-", "\u2013"),
        "\x00" * 36,
        "' OR 1=1 --",
        "x" * 60_000,
    ],
)
KEY = [
    ({"idempotency_key": ""}, "idempotency_key", "is missing"),
    ({"idempotency_key": "k" * 129}, "idempotency_key", "has 129 characters; the maximum is 128"),
    *(
        ({"idempotency_key": key}, "idempotency_key", "only printable ASCII")
        for key in ("schlüssel", "a\nb", "a\tb", "a\x00b", "a\x7fb", "🎛", "\xa0")
    ),
]
CONTROLS = ("a\x00b", "a\nb", "a\tb", "\x1b[31mred", "a\x7fb", "a\x85b")
TEXTS = [
    ({"description": "d" * 501}, "description", "has 501 characters; the maximum is 500"),
    ({"reference": "r" * 256}, "reference", "has 256 characters; the maximum is 255"),
    *(({"description": text}, "description", "control characters") for text in CONTROLS),
    *(({"reference": text}, "reference", "control characters") for text in CONTROLS),
]
METADATA = [
    ({"metadata": {str(n): "" for n in range(21)}}, "metadata", "has 21 pairs; the maximum is 20"),
    ({"metadata": {"k": "v" * 4096}}, "metadata", "the maximum is 4096"),
    ({"metadata": {f"{n:02}": "v" * 203 for n in range(20)}}, "metadata", "has 4100 bytes"),
    ({"metadata": {"k": "ü" * 2048}}, "metadata", "has 4097 bytes"),
    ({"metadata": {"": "v"}}, "metadata", "a pair without a key"),
    *(({"metadata": {text: "v"}}, "metadata", "control characters") for text in CONTROLS),
    *(({"metadata": {"k": text}}, "metadata", "control characters") for text in CONTROLS),
]
WRITE = [*USER, *KEY, *TEXTS, *METADATA]
AMOUNTS = [0, -1, HUGE, 10**15, INT64_MAX, INT64_MIN]
AMOUNT = [({"amount": amount}, "amount", "must be 1 to 1000000000000") for amount in AMOUNTS]
OPERATIONS = ["Render", "render ", "re-nder", "1render", "ren\x00der", "rénder", "r" * 65, "*"]
TIMES = [
    Timestamp(seconds=-62135596801),
    Timestamp(seconds=253402300800),
    Timestamp(seconds=INT64_MAX),
    Timestamp(seconds=INT64_MIN),
    Timestamp(nanos=-1),
    Timestamp(nanos=10**9),
    Timestamp(seconds=1, nanos=INT32_MIN),
]


def charges(place: str, wrap) -> list[Mistake]:
    return [
        (wrap(pb.Charge()), f"{place}.operation", "is missing"),
        *(
            (wrap(pb.Charge(operation=name)), f"{place}.operation", "a name of the price list")
            for name in OPERATIONS
        ),
        (wrap(pb.Charge(operation="mastering")), f"{place}.operation", "(render, stem_separation)"),
        *(
            (wrap(pb.Charge(operation="render", quantity=n)), f"{place}.quantity", "must be 1 to")
            for n in AMOUNTS
        ),
        (
            wrap(pb.Charge(operation="render", quantity=10**12)),
            f"{place}.quantity",
            "would cost 5000000000000 credits; the maximum is 1000000000000",
        ),
    ]


def times(field: str) -> list[Mistake]:
    return [({field: time}, field, "not a time between the years 1 and 9999") for time in TIMES]


def ids(field: str) -> list[Mistake]:
    wrong = [
        "42",
        U,
        f"{U}-",
        f"{U}--1",
        f"{U}-+1",
        f"{U}-01",
        f"{U}-1 ",
        f"{U}-\u0661",
        f"{U}-1\n",
    ]
    wrong += [f"{U.upper()}-1", f"{{{U}}}-1", f"{U}-{10**17}", "\x00", "-", "x" * 60_000]
    return [({field: text}, field, "is not a transaction id") for text in wrong]


TOP_UP = [
    ({"top_up_id": ""}, "top_up_id", "is missing"),
    *(
        ({"top_up_id": text}, "top_up_id", "is not the id of a request for a top-up")
        for text in ("42", U, f"{U}-1", f"{U}-t1", f"{U}-t1-x", "\x00", "x" * 60_000)
    ),
]
TTL = [
    ({"ttl": Duration(seconds=seconds, nanos=nanos)}, "ttl", "must be 1 second to 24 hours")
    for seconds, nanos in ((0, 0), (0, 999_999_999), (-1, 0), (86_400, 1), (31_536_000, 0))
]

LIFE = [
    *times("expire_time"),
    *(
        ({"valid_for": Duration(seconds=seconds, nanos=nanos)}, "valid_for", "1 second to 3,653")
        for seconds, nanos in ((0, 0), (0, 999_999_999), (-1, 0), (3653 * 86_400, 1), (10**11, 0))
    ),
    *(({"priority": n}, "priority", "must be 0 to 100") for n in (-1, 101, INT32_MIN)),
]


def rollovers(**life: object) -> list[Mistake]:
    return [
        ({"rollover": pb.Rollover(series="plan", cap=0)}, "rollover", "needs an expire_time"),
        *(
            (life | {"rollover": pb.Rollover(series=name, cap=0)}, "rollover.series", words)
            for name, words in (
                ("", "is missing"),
                ("s" * 65, "has 65 characters; the maximum is 64"),
                ("s\x00", "only printable ASCII"),
                ("série", "only printable ASCII"),
            )
        ),
        *(
            (life | {"rollover": pb.Rollover(series="plan", cap=n)}, "rollover.cap", "must be 0 to")
            for n in AMOUNTS[1:]
        ),
        (
            life | {"rollover": pb.Rollover(series="plan", cap=0), "payment": None},
            "rollover",
            "needs a payment",
        ),
    ]


MISTAKES: dict[str, list[Mistake]] = {
    "GetUserCredit": [
        *USER,
        ({"history_size": -1}, "history_size", "must not be negative"),
        ({"history_size": INT32_MIN}, "history_size", "must not be negative"),
        *times("as_of"),
    ],
    "PurchaseCredits": [
        *WRITE,
        *AMOUNT,
        ({"payment": pb.Payment()}, "payment.ref", "is missing"),
        (
            {"payment": payment(ref="p" * 256)},
            "payment.ref",
            "has 256 characters; the maximum is 255",
        ),
        ({"payment": payment(ref="pi\x00")}, "payment.ref", "only printable ASCII"),
        ({"payment": payment(ref="überweisung")}, "payment.ref", "only printable ASCII"),
        ({"payment": payment(amount_minor=-1)}, "payment.amount_minor", "not be negative"),
        ({"payment": payment(amount_minor=INT64_MIN)}, "payment.amount_minor", "not be negative"),
        *(
            ({"payment": payment(currency=code)}, "payment.currency", "three-letter code")
            for code in ("", "EUR", "eu", "euro", "€", "e\x00r", "eur\n")
        ),
        *LIFE,
        *rollovers(valid_for=Duration(seconds=1)),
    ],
    "SpendCredits": [
        *WRITE,
        *AMOUNT,
        ({"amount": None}, "price", "name a charge or an amount"),
        *charges("charge", lambda charge: {"charge": charge}),
        *(({"expected_cost": cost}, "expected_cost", "must be 1 to") for cost in AMOUNTS),
    ],
    "RefundCredits": [
        *WRITE,
        *AMOUNT,
        *ids("transaction_id"),
        ({"transaction_id": "", "amount": None}, "amount", "without a spend"),
    ],
    "GetTransactionHistory": [
        *USER,
        ({"page_size": -1}, "page_size", "must not be negative"),
        *(({"page_token": token}, "page_token", "start at the first page") for token in ("x", U)),
        *(({"types": [kind]}, "types", f"holds {kind}") for kind in (0, 99, -1)),
        *times("start_time"),
        *times("end_time"),
        ({"reference": "r" * 256}, "reference", "the maximum is 255"),
        *(({"reference": text}, "reference", "control characters") for text in CONTROLS),
        *ids("related_transaction_id"),
        *ids("grant_id"),
    ],
    "GetTransaction": [
        *USER,
        ({"idempotency_key": None}, "lookup", "a transaction_id or an idempotency_key"),
        *KEY,
        *ids("transaction_id"),
        ({"transaction_id": ""}, "transaction_id", "is not a transaction id"),
    ],
    "HoldCredits": [
        *WRITE,
        *AMOUNT,
        ({"amount": None}, "price", "name a charge or an amount"),
        *charges("charge", lambda charge: {"charge": charge}),
        *(({"expected_cost": cost}, "expected_cost", "must be 1 to") for cost in AMOUNTS),
        *TTL,
    ],
    "CaptureHold": [
        *WRITE,
        *(({"amount": n}, "amount", "must be 0 to") for n in AMOUNTS[1:]),
        *(({"amount": None, "quantity": n}, "quantity", "must be 0 to") for n in AMOUNTS[1:]),
        ({"amount": None, "quantity": 1}, "quantity", "needs a hold of an operation"),
        ({"amount": 6}, "amount", "set allow_overage to take more"),
        ({"hold_id": ""}, "hold_id", "is missing"),
        *ids("hold_id"),
    ],
    "ReleaseHold": [*WRITE, ({"hold_id": ""}, "hold_id", "is missing"), *ids("hold_id")],
    "ExtendHold": [*USER, *TTL, ({"hold_id": ""}, "hold_id", "is missing"), *ids("hold_id")],
    "GetHold": [*USER, ({"hold_id": ""}, "hold_id", "is missing"), *ids("hold_id")],
    "ListHolds": [
        *USER,
        ({"page_size": -1}, "page_size", "must not be negative"),
        *(({"page_token": token}, "page_token", "start at the first page") for token in ("x", U)),
        *(({"state": state}, "state", f"is {state}") for state in (99, -1)),
    ],
    "BatchSpendCredits": [
        ({"items": []}, "items", "must be 1 to 1000"),
        ({"items": [pb.BatchSpendItem()] * 1001}, "items", "must be 1 to 1000"),
        (
            {"items": [pb.BatchSpendItem(user_id=U, amount=1, idempotency_key="k")] * 2},
            "items[1].idempotency_key",
            "twice",
        ),
        ({"mode": pb.BATCH_MODE_UNSPECIFIED}, "mode", "ATOMIC or INDEPENDENT"),
        ({"mode": 99}, "mode", "ATOMIC or INDEPENDENT"),
    ],
    "GrantCredits": [
        *USER,
        *KEY,
        *METADATA,
        *AMOUNT,
        ({"reason": ""}, "reason", "is missing"),
        ({"reason": "r" * 501}, "reason", "has 501 characters; the maximum is 500"),
        *(({"reason": text}, "reason", "control characters") for text in CONTROLS),
        ({"reference": "r" * 256}, "reference", "the maximum is 255"),
        *LIFE,
        *(({"category": kind}, "category", f"is {kind}") for kind in (3, 99, -1)),
    ],
    "AdjustCredits": [
        *USER,
        *KEY,
        *METADATA,
        *(
            ({"amount": n}, "amount", "must be -1000000000000 to 1000000000000 and not 0")
            for n in (0, HUGE, -HUGE, INT64_MAX, INT64_MIN)
        ),
        ({"reason": ""}, "reason", "is missing"),
        ({"reason": "r" * 501}, "reason", "has 501 characters; the maximum is 500"),
        *(({"reason": text}, "reason", "control characters") for text in CONTROLS),
        ({"reference": "r" * 256}, "reference", "the maximum is 255"),
    ],
    "RevokeGrant": [
        *USER,
        *KEY,
        *METADATA,
        ({"grant_id": ""}, "grant_id", "is missing"),
        *ids("grant_id"),
        ({"reason": ""}, "reason", "is missing"),
        ({"reason": "r" * 501}, "reason", "has 501 characters; the maximum is 500"),
        *(({"reason": text}, "reason", "control characters") for text in CONTROLS),
        ({"reference": "r" * 256}, "reference", "the maximum is 255"),
    ],
    "ListGrants": [
        *USER,
        ({"page_size": -1}, "page_size", "must not be negative"),
        *(({"page_token": token}, "page_token", "start at the first page") for token in ("x", U)),
    ],
    "GetLiabilityReport": [
        *times("as_of"),
        ({"as_of": Timestamp(seconds=250_000_000_000)}, "as_of", "is still to come"),
    ],
    "ReversePurchase": [
        *(
            ({field: text}, field, words)
            for field in ("payment_ref", "reversal_ref")
            for text, words in (
                ("", "is missing"),
                ("r" * 256, "has 256 characters; the maximum is 255"),
                ("re\x00", "only printable ASCII"),
            )
        ),
        *(
            ({field: amount}, field, "must be 1 to 1000000000000")
            for field in ("revision", "paid_minor")
            for amount in AMOUNTS
        ),
        *(({"reversed_minor": n}, "reversed_minor", "must be 0 to") for n in AMOUNTS[1:]),
        *(
            ({"currency": code}, "currency", "three-letter code")
            for code in ("", "EUR", "eu", "euro", "e\u00fcr")
        ),
        ({"reason": ""}, "reason", "is missing"),
        ({"reason": "r" * 501}, "reason", "has 501 characters; the maximum is 500"),
        *(({"reason": text}, "reason", "control characters") for text in CONTROLS),
    ],
    "SetAccountPolicy": [
        *USER,
        ({"frozen": None}, "frozen", "everything else to change"),
        *(
            ({name: n}, name, "must be -1")
            for name in ("min_balance", "alert_below")
            for n in (HUGE, -HUGE, INT64_MIN)
        ),
        *(({"reset": [n]}, "reset", f"holds {n}, which is not a field") for n in (0, -1, 99)),
        ({"reset": [pb.POLICY_FIELD_FROZEN]}, "reset", "frozen, which is also set"),
        *(
            ({"spend_limits": pb.SpendLimits(**{name: n})}, f"spend_limits.{name}", "must be 0")
            for name in ("per_minute", "per_hour", "per_day")
            for n in (-1, 10**15 + 1, INT64_MAX)
        ),
        *(
            ({"allowance": pb.Allowance(amount=n, period=3)}, "allowance.amount", "must be 0 to")
            for n in AMOUNTS[1:]
        ),
        *(
            ({"allowance": pb.Allowance(amount=1, period=n)}, "allowance.period", "DAY, WEEK")
            for n in (0, 4, -1)
        ),
        *(
            (
                {"allowance": pb.Allowance(amount=1, period=3, carry_over=n)},
                "allowance.carry_over",
                "must be 0 to 12",
            )
            for n in (-1, 13, INT32_MIN)
        ),
    ],
    "GetUsageReport": [
        *USER[1:],
        *times("start_time"),
        *times("end_time"),
        ({"start_time": None}, "start_time", "is missing"),
        ({"end_time": None}, "end_time", "is missing"),
        ({"end_time": Timestamp(seconds=1)}, "end_time", "31 days at most"),
        ({"end_time": Timestamp(seconds=1 + 31 * 86_400, nanos=1000)}, "end_time", "31 days"),
    ],
    "ListAccounts": [
        *times("changed_since"),
        ({"page_size": -1}, "page_size", "must not be negative"),
        *(({"page_token": token}, "page_token", "start at the first page") for token in ("x", U)),
    ],
    "ListTopUps": [
        *USER[1:],
        ({"user_id": ""}, "open_only", "must be set if no user_id is"),
        ({"page_size": -1}, "page_size", "must not be negative"),
        *(({"page_token": token}, "page_token", "start at the first page") for token in ("x", U)),
    ],
    "NoteTopUp": [
        *USER,
        *TOP_UP,
        ({"payment_ref": ""}, "payment_ref", "is missing"),
        ({"payment_ref": "p" * 256}, "payment_ref", "255"),
        ({"payment_ref": "ü"}, "payment_ref", "ASCII"),
    ],
    "FailTopUp": [
        *USER,
        *TOP_UP,
        *(({"failure": n}, "failure", "must be TRY_AGAIN") for n in (0, -1, 99)),
        *(({"try_number": n}, "try_number", "must be") for n in (0, -1, INT32_MIN)),
        ({"reason": ""}, "reason", "is missing"),
        ({"reason": "r" * 501}, "reason", "has 501 characters; the maximum is 500"),
        *(({"reason": text}, "reason", "control characters") for text in CONTROLS),
        ({"link": "javascript:alert(1)"}, "link", "http"),
        ({"link": "https://x/" + "y" * 2048}, "link", "2048"),
        ({"payment_ref": "p" * 256}, "payment_ref", "255"),
    ],
    "ListPrices": [],
    "QuoteCost": [
        *USER[1:],
        ({"items": []}, "items", "must be 1 to 100"),
        ({"items": [pb.Charge(operation="render")] * 101}, "items", "must be 1 to 100"),
        *charges("items[1]", lambda charge: {"items": [pb.Charge(operation="render"), charge]}),
    ],
}
