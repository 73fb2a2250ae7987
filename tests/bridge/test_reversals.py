"""The reversals of refunds and disputes, exact and in whole numbers."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.extent import unless_long
from kit.stripe_bodies import thing

from stripe_bridge.dispute_rules import of_dispute
from stripe_bridge.model import Needs, Nothing, Notice, Reversal, Unresolved
from stripe_bridge.refund_rules import basis_of_intent, basis_of_invoice, of_refund

CHARGE = {"id": "ch_1", "object": "charge", "amount": 900, "currency": "eur"}
INTENT = "pi_1"
FOREIGN_REASON = "in another currency than the charge"
PENDING = "2024-10-28.acacia/refund.created"
FAILED = "2024-10-28.acacia/refund.failed"
WITHDRAWN = "2026-10-28.endive/charge.dispute.created"
LOST = "2024-10-28.acacia/charge.dispute.closed-lost"
WON = "2023-10-16/charge.dispute.closed-won"
PARTLY = "2026-10-28.endive/charge.dispute.closed-partly-returned"
FOREIGN = "2025-03-31.basil/charge.dispute.created-other-currency"
INQUIRY = "2022-08-01/charge.dispute.created-inquiry"


def judged(obj, charge=CHARGE, **options):
    of = of_refund if obj["object"] == "refund" else of_dispute
    return of(obj, basis=basis_of_intent(INTENT, charge), **options)


def reversal(obj, revision, reversed_minor, reason, notice=None):
    return Reversal(INTENT, obj["id"], revision, reversed_minor, 900, "eur", reason, notice)


def unresolved(obj, charge=CHARGE):
    with pytest.raises(Unresolved) as raised:
        judged(obj, charge)
    assert "@" not in raised.value.detail
    return raised.value.reason


def moves(*amounts, currency="usd"):
    """Balance transactions, one second apart."""
    return [
        {"object": "balance_transaction", "amount": amount, "created": at, "currency": currency}
        for at, amount in enumerate(amounts)
    ]


@pytest.mark.parametrize(
    ("name", "revision", "reversed_minor", "reason"),
    [
        ("2023-10-16/charge.refund.updated", 1, 400, "refund"),
        (PENDING, 1, 400, "refund"),
        ("2025-03-31.basil/refund.updated", 1, 400, "refund"),
        (FAILED, 2, 0, "refund failed"),
        ("2026-10-28.endive/refund.updated", 2, 0, "refund canceled"),
        ("2024-10-28.acacia/charge.dispute.created", 1, 900, "dispute fraudulent"),
        (LOST, 1, 900, "dispute fraudulent"),
        (WITHDRAWN, 1, 900, "dispute fraudulent"),
        (WON, 2, 0, "dispute fraudulent, returned"),
        (PARTLY, 2, 500, "dispute fraudulent, partly returned"),
        (FOREIGN, 1, 900, f"dispute fraudulent, {FOREIGN_REASON}"),
    ],
)
def test_every_api_version_shows_the_refunded_amount(name, revision, reversed_minor, reason):
    obj = thing(name)
    notices = {FOREIGN: Notice.OTHER_CURRENCY, PARTLY: Notice.PARTLY_RETURNED}
    notice = notices.get(name)
    assert judged(obj) == reversal(obj, revision, reversed_minor, reason, notice)


@pytest.mark.parametrize(("name", "amounts"), [("2019-12-03", {300, 200}), ("2022-08-01", {900})])
def test_refunds_embedded_in_a_charge_count_separately(name, amounts):
    charge = thing(f"{name}/charge.refunded")
    found = [judged(refund, charge) for refund in charge["refunds"]["data"]]
    assert {each.reversed_minor for each in found} == amounts
    assert {(each.revision, each.paid_minor) for each in found} == {(1, 900)}
    assert sum(each.reversed_minor for each in found) == charge["amount_refunded"]
    assert len({each.reversal_ref for each in found}) == len(found)


@pytest.mark.parametrize("status", ["pending", "requires_action", "succeeded", None, "new", 5])
def test_a_refund_takes_its_share_until_it_is_known_to_have_failed(status):
    refund = thing(PENDING, status=status)
    assert judged(refund) == reversal(refund, 1, 400, "refund")


@pytest.mark.parametrize("status", ["succeeded", "pending", "failed", None])
def test_an_event_of_a_failure_gives_the_share_back_for_any_status(status):
    refund = thing(PENDING, status=status)
    assert judged(refund, failed=True) == reversal(refund, 2, 0, "refund failed")


def test_a_refund_takes_no_more_than_the_charge():
    assert judged(thing(PENDING, amount=901)).reversed_minor == 900


def test_the_base_is_the_whole_amount_of_the_charge_even_after_captures_and_refunds():
    charge = CHARGE | {"amount_captured": 600, "amount_refunded": 300}
    assert judged(thing(PENDING), charge) == judged(thing(PENDING))


@pytest.mark.parametrize(
    ("contributed", "refunded", "reversed_minor"),
    [
        (900, 900, 900),
        (900, 450, 450),
        (None, 450, 450),
        (600, 900, 600),
        (600, 450, 300),
        (600, 1000, 600),
        (12_000, 900, 10_000),
        (0, 900, 0),
    ],
)
def test_a_charge_that_paid_a_part_of_an_invoice_takes_no_more_than_that_part(
    contributed, refunded, reversed_minor
):
    invoice = {"id": "in_1", "object": "invoice", "total": 10_000, "currency": "usd"}
    basis = basis_of_invoice(invoice, [], contributed, CHARGE)
    refund = thing(PENDING, amount=refunded)
    assert of_refund(refund, basis=basis) == Reversal(
        "in_1", refund["id"], 1, reversed_minor, 10_000, "usd", "refund"
    )


@pytest.mark.parametrize("total", [0, None, -1, "900", True])
def test_an_invoice_whose_total_is_unknown_waits_for_a_person(total):
    invoice = {"id": "in_1", "object": "invoice", "total": total, "currency": "usd"}
    with pytest.raises(Unresolved) as raised:
        basis_of_invoice(invoice, [], 900, CHARGE)
    assert raised.value.reason == "amount_malformed"


def test_a_refund_in_another_currency_waits_for_a_person_unless_it_failed():
    assert unresolved(thing(PENDING, currency="usd")) == "currency_mismatch"
    assert judged(thing(PENDING, currency="EUR")).reversed_minor == 400
    failed = thing(FAILED, currency="usd")
    assert judged(failed) == reversal(failed, 2, 0, "refund failed")


@pytest.mark.parametrize("name", [INQUIRY, "2026-10-28.endive/charge.dispute.closed-prevented"])
def test_an_inquiry_takes_nothing(name):
    assert judged(thing(name)) == Nothing("inquiry")


def test_a_dispute_takes_nothing_before_money_is_withdrawn():
    assert judged(thing(WITHDRAWN, balance_transactions=[])) == Nothing("not_withdrawn")
    returned = thing(WITHDRAWN, balance_transactions=moves(990))
    assert judged(returned) == Nothing("not_withdrawn")


@pytest.mark.parametrize(
    "status", ["warning_closed", "prevented", "appeal_under_review", "won", "later", None, 5, []]
)
def test_the_transactions_decide_and_not_the_status(status):
    assert judged(thing(WITHDRAWN, status=status)).reversed_minor == 900
    assert judged(thing(WON, status=status)).reversed_minor == 0


def test_a_dispute_without_its_transactions_is_read():
    dispute = thing(WITHDRAWN, balance_transactions=None)
    with pytest.raises(Needs) as raised:
        judged(dispute)
    assert (raised.value.what, raised.value.id) == ("dispute", dispute["id"])
    del dispute["balance_transactions"]
    with pytest.raises(Needs):
        judged(dispute)


@pytest.mark.parametrize(
    ("amounts", "disputed", "reversed_minor"),
    [
        ((-990,), 900, 900),
        ((-990,), 450, 450),
        ((-990,), 1000, 900),
        ((-990, 990), 900, 0),
        ((-990, 1000), 900, 0),
        ((-990, 440), 900, 500),
        ((-990, 990, -990), 900, 900),
        ((-990, 990, -990, 330), 900, 600),
        ((-990, 440, -1500), 900, 900),
        ((-3, 1), 900, 600),
        ((-3, 1), 100, 66),
    ],
    ids=str,
)
def test_a_dispute_takes_its_amount_times_the_share_that_stays_withdrawn(
    amounts, disputed, reversed_minor
):
    dispute = thing(WITHDRAWN, amount=disputed, balance_transactions=moves(*amounts))
    found = judged(dispute)
    assert (found.revision, found.reversed_minor) == (len(amounts), reversed_minor)


RESULTS = [
    # A rate of another day, or a fee beside the withdrawal, changes no credits.
    ((-1850, 1840), "won", 0, None),
    ((-1850, 1930), "won", 0, None),
    ((-1850,), "lost", 2000, None),
    ((-1850, 12), "lost", 2000, None),
    ((-2000, -1500), "needs_response", 2000, None),
    ((-2000, -1500, 2000), "won", 0, None),
    ((-1500, -2000, 2000), "won", 0, None),
    ((-2000, -1500), "lost", 2000, None),
    # The money decides: a result whose money has not moved changes nothing yet.
    ((-1850,), "won", 2000, None),
    ((-1850, 12), "won", 2000, None),
    ((-1850, 1840), "under_review", 0, None),
    ((-1850, 1840, -1835), "lost", 2000, None),
    # A person should look at money that returned in part, or contrary to the result.
    ((-2000, 900), "lost", 1100, Notice.PARTLY_RETURNED),
    ((-2000, -1500, 1000), "lost", 1000, Notice.PARTLY_RETURNED),
    ((-2000, 900), "under_review", 1100, Notice.PARTLY_RETURNED),
    ((-2000, 900), "won", 0, Notice.PARTLY_RETURNED),
    ((-2000, 2000), "lost", 0, Notice.LOST_AND_RETURNED),
]


@pytest.mark.parametrize(("amounts", "status", "reversed_minor", "notice"), RESULTS, ids=str)
def test_a_dispute_takes_the_disputed_part_or_nothing_unless_money_came_back_in_part(
    amounts, status, reversed_minor, notice
):
    charge = CHARGE | {"amount": 2000, "currency": "usd"}
    listed = moves(*amounts, currency="eur")
    dispute = thing(
        WITHDRAWN, amount=2000, currency="usd", status=status, balance_transactions=listed
    )
    found = judged(dispute, charge)
    assert (found.reversed_minor, found.notice) == (reversed_minor, notice)


def test_winning_after_a_partial_return_is_a_later_state_than_the_return():
    listed = moves(-990, 440)
    before = judged(thing(WITHDRAWN, balance_transactions=listed))
    won = judged(thing(WITHDRAWN, status="won", balance_transactions=listed))
    whole = judged(thing(WITHDRAWN, status="won", balance_transactions=moves(-990, 440, 550)))
    assert (before.revision, before.reversed_minor) == (2, 500)
    assert (won.revision, won.reversed_minor) == (whole.revision, whole.reversed_minor) == (3, 0)


def test_a_dispute_in_another_currency_takes_the_share_of_the_whole_charge_and_says_so():
    part = thing(FOREIGN, balance_transactions=moves(-1010, 505))
    found = judged(part)
    assert (found.revision, found.reversed_minor, found.currency) == (2, 450, "eur")
    assert found.reason == f"dispute fraudulent, partly returned, {FOREIGN_REASON}"
    assert found.notice is Notice.OTHER_CURRENCY


def test_transactions_in_several_currencies_wait_for_a_person():
    mixed = moves(-990) + moves(990, currency="eur")
    assert unresolved(thing(WITHDRAWN, balance_transactions=mixed)) == "currency_mismatch"


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("product_not_received", "dispute product_not_received"),
        ("", "dispute"),
        (None, "dispute"),
        (5, "dispute"),
        ("Me <me@example.com>", "dispute"),
        ("x" * 41, "dispute"),
    ],
)
def test_the_reason_contains_nothing_but_a_word_of_stripe_s(why, reason):
    assert judged(thing(WITHDRAWN, reason=why)).reason == reason


@pytest.mark.parametrize("amount", [None, -1, 4.0, "400", True, 2**63, 10**400, []])
def test_a_malformed_amount_waits_for_a_person(amount):
    assert unresolved(thing(PENDING, amount=amount)) == "amount_malformed"
    assert unresolved(thing(WITHDRAWN, amount=amount)) == "amount_malformed"
    for obj in (thing(PENDING), thing(FAILED), thing(WITHDRAWN)):
        assert unresolved(obj, CHARGE | {"amount": amount}) == "amount_malformed"
        assert unresolved(obj, CHARGE | {"amount": 0}) == "amount_malformed"


@pytest.mark.parametrize("listed", [{}, "x", 5, [None], ["txn_1"], moves(None), moves(True), [{}]])
def test_malformed_transactions_wait_for_a_person(listed):
    dispute = thing(WITHDRAWN, balance_transactions=listed)
    assert unresolved(dispute) == "amount_malformed"


AMOUNTS = st.integers(1, 10**12)


@settings(derandomize=True, max_examples=unless_long(80, 200))
@given(
    first=AMOUNTS,
    returned=st.lists(AMOUNTS, max_size=3),
    amounts=st.tuples(AMOUNTS, AMOUNTS),
    told_as=st.tuples(
        st.sampled_from(["eur", "jpy"]), st.sampled_from(["needs_response", "lost", "won"])
    ),
    order=st.randoms(use_true_random=False),
)
def test_a_dispute_takes_an_exact_share_of_the_payment_in_any_order_of_its_transactions(
    first, returned, amounts, told_as, order
):
    (disputed, paid), (currency, status) = amounts, told_as
    listed = moves(-first, *returned)
    order.shuffle(listed)
    dispute = thing(
        WITHDRAWN, amount=disputed, currency=currency, status=status, balance_transactions=listed
    )
    found = judged(dispute, CHARGE | {"amount": paid})
    share = max(Fraction(first - sum(returned), first), Fraction(0))
    if share >= Fraction(19, 20):
        share = Fraction(1)
    elif share <= Fraction(1, 20) or status == "won":
        share = Fraction(0)
    whole = disputed if currency == "eur" else paid
    assert found.reversed_minor == min(int(whole * share), paid)
    assert found.revision in (1 + len(returned), 2 + len(returned))
    assert (found.notice is Notice.OTHER_CURRENCY) == (currency != "eur")


@settings(derandomize=True, max_examples=100)
@given(
    listed=st.lists(st.integers(-(10**12), 10**12), max_size=5),
    status=st.sampled_from(["needs_response", "lost", "won", "later"]),
    order=st.randoms(use_true_random=False),
)
def test_a_dispute_never_takes_more_than_was_paid_and_depends_on_no_order(listed, status, order):
    listed = moves(*listed)
    found = judged(thing(WITHDRAWN, status=status, balance_transactions=listed))
    order.shuffle(listed)
    assert judged(thing(WITHDRAWN, status=status, balance_transactions=listed)) == found
    if isinstance(found, Reversal):
        assert 0 <= found.reversed_minor <= found.paid_minor == 900


@settings(derandomize=True, max_examples=100)
@given(amount=st.integers(0, 10**12), paid=AMOUNTS, failed=st.booleans())
def test_a_refund_takes_its_amount_up_to_the_payment(amount, paid, failed):
    found = judged(thing(PENDING, amount=amount), CHARGE | {"amount": paid}, failed=failed)
    assert (found.revision, found.paid_minor) == (2 if failed else 1, paid)
    assert found.reversed_minor == (0 if failed else min(amount, paid))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(["eur", "failed", "warning_closed", "re_1", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "amount", "created", "currency"]), inner)
    ),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["id", "amount", "currency", "status", "reason", "balance_transactions", "created"]
)


@settings(derandomize=True, max_examples=unless_long(150, 500))
@given(
    name=st.sampled_from([PENDING, FAILED, WITHDRAWN, WON, PARTLY, FOREIGN, INQUIRY]),
    changes=st.dictionaries(FIELDS, JSON, max_size=3),
    of_charge=st.dictionaries(FIELDS, JSON, max_size=1),
)
def test_any_shape_of_json_raises_only_needs_or_unresolved(name, changes, of_charge):
    try:
        found = judged(thing(name, **changes), CHARGE | of_charge)
    except (Needs, Unresolved):
        return
    if isinstance(found, Reversal):
        assert 0 <= found.reversed_minor <= found.paid_minor < 2**63
        assert found.revision >= 1
        assert found.currency.islower()
