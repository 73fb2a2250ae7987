"""The credits that a session, payment intent or invoice gives, the user, and cases without any."""

import re
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.bridge_rules import BY_PRICE_ID, NO_CATALOGUE, POLICY, judged, needed, unresolved
from kit.extent import unless_long
from kit.stripe_bodies import STORAGE, STUDIO, USER, names, thing

from stripe_bridge.catalog import CREDITS_MAX
from stripe_bridge.metadata import frozen_metadata
from stripe_bridge.model import Grant, Needs, Nothing, Unresolved

OTHER_USER = "00000000-0000-4000-8000-0000000000aa"
BY_REFERENCE = replace(POLICY, allow_client_reference_id=True)
PAID = "2026-10-28.endive/checkout.session.completed"
LINK = "2022-08-01/checkout.session.completed"
INTENT = "2026-10-28.endive/payment_intent.succeeded"
INVOICE = "2026-10-28.endive/invoice.paid"
KINDS = {"checkout.session", "payment_intent", "invoice"}
PACKS = [{"price": {"id": "price_x", "lookup_key": "credits_1000"}, "quantity": 3}]


def granted(name, amount, amount_minor):
    """The grant of a recorded body."""
    obj = thing(name)
    paid_by = obj["payment_intent"] if obj["object"] == "checkout.session" else obj["id"]
    return Grant(paid_by, UUID(USER), amount, amount_minor, "eur", obj["id"])


@pytest.mark.parametrize(
    ("name", "amounts"),
    [
        ("2019-12-03/payment_intent.succeeded", (1000, 900)),
        ("2022-08-01/checkout.session.async_payment_succeeded", (1000, 900)),
        ("2023-10-16/checkout.session.completed", (1000, 900)),
        ("2023-10-16/payment_intent.succeeded", (1000, 900)),
        ("2025-03-31.basil/checkout.session.completed", (1000, 900)),
        ("2025-03-31.basil/payment_intent.succeeded", (1000, 900)),
        (PAID, (1000, 900)),
        (INTENT, (1000, 900)),
        ("2019-12-03/invoice.paid", (80, 3800)),
        ("2022-08-01/invoice.paid", (500, 1900)),
        ("2023-10-16/invoice.paid", (1500, 1900)),
        ("2025-03-31.basil/invoice.paid", (500, 1900)),
        (INVOICE, (1000, 1900)),
    ],
)
def test_paid_credits_are_granted_in_every_api_version(name, amounts):
    assert judged(thing(name), BY_PRICE_ID) == granted(name, *amounts)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("2023-10-16/checkout.session.completed-unpaid", "unpaid"),
        ("2024-10-28.acacia/checkout.session.completed-setup", "setup"),
        ("2024-10-28.acacia/checkout.session.completed-subscription", "subscription"),
        ("2026-10-28.endive/checkout.session.completed-free", "free_order"),
        ("2022-08-01/invoice.paid-manual", "billing_reason"),
    ],
)
def test_a_payment_that_is_missing_or_not_for_credits_gives_nothing(name, reason):
    verdict = judged(thing(name))
    assert isinstance(verdict, Nothing)
    assert verdict.reason == reason


def test_a_session_without_a_payment_status_is_read_again():
    old = thing("2019-12-03/checkout.session.completed")
    assert needed(old) == ("session", old["id"])


@pytest.mark.parametrize("version", ["2023-10-16", "2025-03-31.basil", "2026-10-28.endive"])
def test_a_session_and_its_payment_intent_give_the_same_grant(version):
    session = thing(f"{version}/checkout.session.completed")
    intent = thing(f"{version}/payment_intent.succeeded")
    assert session["payment_intent"] == intent["id"]
    grant = judged(session)
    assert judged(intent) == replace(grant, source=intent["id"])


@settings(derandomize=True, max_examples=100)
@given(
    user=st.uuids(),
    bought=st.integers(1, CREDITS_MAX),
    total=st.integers(1, 10**12),
    captured=st.integers(0, 10**12),
    currency=st.sampled_from(["eur", "JPY", "kwd"]),
)
def test_a_session_and_its_intent_agree_for_every_purchase(user, bought, total, captured, currency):
    fields = {"metadata": frozen_metadata(user, bought), "currency": currency}
    session = thing(PAID, amount_total=total, **fields)
    intent = thing(INTENT, amount=total, amount_received=captured, **fields)
    grant = judged(session)
    assert (grant.user_id, grant.credits, grant.amount_minor) == (user, bought, total)
    assert judged(intent) == replace(grant, source=intent["id"])


@pytest.mark.parametrize("name", [PAID, INTENT])
@pytest.mark.parametrize(
    "written",
    [
        *("", "0", "-5", "+5", "1e3", "1e9", "10.0", " 5", "5 ", "5\n", "007", "1_000", "0x10"),
        *("\u0665", str(CREDITS_MAX + 1), str(10**30), "9" * 5000),
        *(1000, 10.0, True, None, ["5"], {}),
    ],
)
def test_credits_that_are_not_a_plain_whole_number_in_range_wait_for_a_person(name, written):
    metadata = thing(name)["metadata"] | {"credits": written}
    assert unresolved(thing(name, metadata=metadata)) == "credits_malformed"


@pytest.mark.parametrize("name", [PAID, INTENT])
@pytest.mark.parametrize("written", ["1", str(CREDITS_MAX)])
def test_credits_are_one_to_a_million_million(name, written):
    metadata = thing(name)["metadata"] | {"credits": written}
    assert judged(thing(name, metadata=metadata)).credits == int(written)


@pytest.mark.parametrize("name", [PAID, INTENT])
@pytest.mark.parametrize("version", ["2", "", "1.0", 1, None])
def test_metadata_of_another_version_waits_for_a_person(name, version):
    metadata = thing(name)["metadata"] | {"credits_v": version}
    assert unresolved(thing(name, metadata=metadata)) == "credits_version"
    without = {"credit_user_id": USER, "credits": "1000"}
    assert unresolved(thing(name, metadata=without)) == "credits_version"


@pytest.mark.parametrize(
    "written",
    [
        *("", "alice", UUID(USER).hex, f"{{{USER}}}", f"urn:uuid:{USER}", f" {USER}", f"{USER}\n"),
        *(USER.replace("3", "\u0663"), USER[:-1], f"{USER}0", 5, ["x"], {}, True),
    ],
)
def test_a_user_that_is_not_a_uuid_waits_for_a_person(written):
    for name in (PAID, INTENT):
        metadata = thing(name)["metadata"] | {"credit_user_id": written}
        assert unresolved(thing(name, metadata=metadata)) == "user_malformed"
    invoice = thing(INVOICE)
    invoice["parent"]["subscription_details"]["metadata"] = {"credit_user_id": written}
    assert unresolved(invoice, BY_PRICE_ID) == "user_malformed"
    by_reference = thing(LINK, client_reference_id=written)
    assert unresolved(by_reference, BY_REFERENCE, PACKS) == "user_malformed"


@pytest.mark.parametrize("name", [PAID, INTENT])
def test_a_user_may_be_written_in_upper_case(name):
    metadata = thing(name)["metadata"] | {"credit_user_id": USER.upper()}
    assert judged(thing(name, metadata=metadata)).user_id == UUID(USER)


@pytest.mark.parametrize("metadata", [None, {}, [], {"order": "1107"}, {"credits": "5"}, "x", 7])
def test_an_object_without_any_of_our_marks_is_not_ours(metadata):
    items = [{"price": {"id": STORAGE, "lookup_key": None}, "quantity": 1}]
    assert judged(thing(PAID, metadata=metadata), listed=items) == Nothing("not_ours")
    assert judged(thing(INTENT, metadata=metadata)) == Nothing("not_ours")
    absent = thing(PAID)
    del absent["metadata"]
    assert judged(absent, listed=items) == Nothing("not_ours")


def test_a_session_of_another_product_costs_no_read_without_a_catalogue():
    shop = thing("2026-10-28.endive/checkout.session.completed-not-ours")
    assert judged(shop, NO_CATALOGUE) == Nothing("not_ours")
    assert needed(shop) == ("line_items", shop["id"])


def test_listed_prices_give_their_credits_times_the_quantity_and_others_none():
    session = thing(PAID, metadata={"credit_user_id": USER})
    assert needed(session) == ("line_items", session["id"])
    shirt = {"price": {"id": "price_shirt", "lookup_key": None}, "quantity": 1}
    tip = {"price": None, "quantity": None}
    monthly = {"price": {"id": STUDIO, "lookup_key": "credits_1000"}, "quantity": 2}
    grant = judged(session, listed=[shirt, *PACKS, tip, monthly])
    assert grant == replace(judged(thing(PAID)), credits=4000)


def test_line_items_that_came_with_the_session_are_not_read_again():
    embedded = {"object": "list", "data": PACKS, "has_more": False}
    session = thing(PAID, metadata={"credit_user_id": USER}, line_items=embedded)
    assert judged(session).credits == 3000
    partial = session | {"line_items": embedded | {"has_more": True}}
    assert needed(partial) == ("line_items", session["id"])
    assert judged(partial, listed=PACKS * 2).credits == 6000


def test_frozen_credits_count_even_after_the_catalogue_has_changed():
    assert judged(thing(PAID), listed=PACKS).credits == 1000


def test_a_user_of_ours_with_no_listed_price_waits_for_a_person():
    ours = thing(PAID, metadata={"credit_user_id": USER})
    unlisted = [{"price": {"id": "price_new", "lookup_key": None}, "quantity": 1}]
    assert unresolved(ours, listed=unlisted) == "price_unknown"
    assert unresolved(ours, NO_CATALOGUE) == "price_unknown"
    assert unresolved(thing(INVOICE), NO_CATALOGUE) == "price_unknown"


@pytest.mark.parametrize("quantity", [None, -1, 1.0, "1", True, CREDITS_MAX + 1, 10**400, []])
def test_a_quantity_that_is_not_a_whole_number_waits_for_a_person(quantity):
    items = [*PACKS, PACKS[0] | {"quantity": quantity}]
    ours = thing(PAID, metadata={"credit_user_id": USER})
    assert unresolved(ours, listed=items) == "quantity_malformed"


def test_a_quantity_of_zero_gives_nothing():
    ours = thing(PAID, metadata={"credit_user_id": USER})
    assert judged(ours, listed=[PACKS[0] | {"quantity": 0}]) == Nothing("no_credits")


@pytest.mark.parametrize(("quantity", "largest"), [(10**9, CREDITS_MAX), (7, 7000)])
def test_a_purchase_above_the_limit_waits_for_a_person(quantity, largest):
    ours = thing(PAID, metadata={"credit_user_id": USER})
    policy = replace(POLICY, max_credits_per_purchase=largest)
    assert judged(ours, policy, [PACKS[0] | {"quantity": quantity}]).credits == largest
    more = [PACKS[0] | {"quantity": quantity + 1}]
    assert unresolved(ours, policy, more) == "credits_above_limit"


def test_no_limit_allows_a_purchase_above_the_maximum_of_an_amount():
    ours = thing(PAID, metadata={"credit_user_id": USER})
    policy = replace(POLICY, max_credits_per_purchase=CREDITS_MAX * 2)
    more = [PACKS[0] | {"quantity": 10**9 + 1}]
    assert unresolved(ours, policy, more) == "credits_above_limit"


@pytest.mark.parametrize("name", [PAID, INTENT, INVOICE])
def test_a_currency_that_is_not_allowed_waits_for_a_person(name):
    policy = replace(BY_PRICE_ID, allowed_currencies=frozenset({"eur"}))
    assert judged(thing(name), policy).currency == "eur"
    assert judged(thing(name, currency="EUR"), policy).currency == "eur"
    assert unresolved(thing(name, currency="usd"), policy) == "currency_not_allowed"
    for malformed in (None, "", "euro", "\u212aRW", 5, ["eur"]):
        assert unresolved(thing(name, currency=malformed), policy) == "currency_malformed"


@pytest.mark.parametrize(
    ("name", "field"), [(PAID, "amount_total"), (INTENT, "amount"), (INVOICE, "amount_paid")]
)
@pytest.mark.parametrize("amount", [None, -1, 9.0, "900", True, 2**63, 10**400, [], {"a": 1}])
def test_a_malformed_amount_waits_for_a_person(name, field, amount):
    assert unresolved(thing(name, **{field: amount}), BY_PRICE_ID) == "amount_malformed"


@pytest.mark.parametrize("name", [PAID, INTENT, INVOICE])
@pytest.mark.parametrize("malformed", [None, "", "pi 1", "pi_1\n", "a" * 121, 5, [], "pi_\u00e9"])
def test_a_malformed_id_waits_for_a_person(name, malformed):
    assert unresolved(thing(name, id=malformed), BY_PRICE_ID) == "id_malformed"


def test_a_payment_may_be_expanded_and_is_malformed_only_without_an_id():
    expanded = thing(PAID, payment_intent=thing(INTENT))
    assert judged(expanded) == judged(thing(PAID))
    for malformed in ("", 5, [], {"id": None}, {}):
        assert unresolved(thing(PAID, payment_intent=malformed)) == "id_malformed"


@pytest.mark.parametrize("status", ["unpaid", "later", "", 5, ["paid"], {"paid": 1}])
def test_a_session_that_is_not_paid_gives_nothing(status):
    for free_or_not in (POLICY, replace(POLICY, allow_free_orders=True)):
        assert judged(thing(PAID, payment_status=status), free_or_not) == Nothing("unpaid")
        unpaid = thing(PAID, payment_status=status, payment_intent=None, amount_total=0)
        assert judged(unpaid, free_or_not) == Nothing("unpaid")


@pytest.mark.parametrize("status", ["processing", "requires_capture", "canceled", None, 5, []])
def test_a_payment_intent_that_has_not_succeeded_gives_nothing(status):
    assert judged(thing(INTENT, status=status)) == Nothing("unpaid")


@pytest.mark.parametrize("mode", ["donation", 5, ["payment"], {"payment": 1}])
def test_a_session_of_an_unknown_mode_gives_nothing(mode):
    assert judged(thing(PAID, mode=mode)) == Nothing("unknown_mode")


@pytest.mark.parametrize("status", ["paid", "no_payment_required"])
def test_a_free_order_gives_credits_only_if_they_are_allowed_and_by_its_own_id(status):
    free = thing("2026-10-28.endive/checkout.session.completed-free", payment_status=status)
    assert judged(free) == Nothing("free_order")
    grant = judged(free, replace(POLICY, allow_free_orders=True))
    assert grant == Grant(free["id"], UUID(USER), 1000, 0, "eur", free["id"])


@pytest.mark.parametrize("name", [PAID, INTENT])
def test_an_order_of_nothing_gives_nothing_even_if_it_has_an_intent(name):
    field = "amount_total" if name == PAID else "amount"
    free = thing(name, **{field: 0})
    assert judged(free) == Nothing("free_order")
    assert judged(free, replace(POLICY, allow_free_orders=True)).credits == 1000


def test_a_free_item_gives_nothing_even_beside_paid_ones():
    ours = thing(PAID, metadata={"credit_user_id": USER})
    free, paid = PACKS[0] | {"amount_total": 0}, PACKS[0] | {"amount_total": 900}
    assert judged(ours, listed=[free]) == Nothing("free_order")
    assert judged(ours, listed=[free, paid]).credits == 3000
    assert judged(ours, replace(POLICY, allow_free_orders=True), [free, paid]).credits == 6000


def test_a_paid_session_that_names_no_payment_waits_for_a_person():
    for policy in (POLICY, replace(POLICY, allow_free_orders=True)):
        assert unresolved(thing(PAID, payment_intent=None), policy) == "payment_missing"


def test_no_payment_required_now_gives_nothing_if_a_payment_is_still_to_come():
    later = thing(PAID, payment_status="no_payment_required")
    assert judged(later, replace(POLICY, allow_free_orders=True)) == Nothing("unpaid")


def test_a_client_reference_names_the_user_only_if_that_is_allowed():
    link = thing(LINK)
    assert link["client_reference_id"] == USER
    assert needed(link, POLICY, PACKS) == ("customer", link["customer"])
    assert judged(link, BY_REFERENCE, PACKS).user_id == UUID(USER)
    anonymous = link | {"client_reference_id": None}
    assert needed(anonymous, BY_REFERENCE, PACKS) == ("customer", link["customer"])


def test_our_metadata_names_the_user_before_the_reference_and_the_customer():
    customer = {"id": "cus_1", "object": "customer", "metadata": {"credit_user_id": OTHER_USER}}
    named = {"client_reference_id": OTHER_USER, "customer": customer}
    for name in (PAID, INTENT):
        assert judged(thing(name, **named), BY_REFERENCE).user_id == UUID(USER)
    link = thing(LINK, customer=customer)
    assert judged(link, BY_REFERENCE, PACKS).user_id == UUID(USER)


@pytest.mark.parametrize("name", [PAID, INTENT])
def test_the_customer_names_the_user_when_nothing_else_does(name):
    metadata = {"credits": "1000", "credits_v": "1"}
    assert needed(thing(name, metadata=metadata, customer="cus_1")) == ("customer", "cus_1")
    customer = {"id": "cus_1", "object": "customer", "metadata": {"credit_user_id": USER}}
    obj = thing(name, metadata=metadata, customer=customer)
    assert judged(obj) == judged(thing(name))
    customer["metadata"]["credit_user_id"] = "alice"
    assert unresolved(obj) == "user_malformed"
    for unknown in (None, {"id": "cus_1", "deleted": True}, customer | {"metadata": []}):
        assert unresolved(obj | {"customer": unknown}) == "user_missing"
    for malformed in ("", "cus 1"):
        assert unresolved(obj | {"customer": malformed}) == "id_malformed"


def test_an_intent_waits_for_its_session_if_only_the_session_names_the_user():
    no_credits = thing(INTENT, metadata={"credit_user_id": USER})
    assert judged(no_credits) == Nothing("session_decides")
    no_user = thing(INTENT, metadata={"credits": "1000", "credits_v": "1"}, customer="cus_1")
    assert judged(no_user, BY_REFERENCE) == Nothing("session_decides")


DECISIVE = {
    *("id", "mode", "status", "payment_status", "payment_intent", "amount_total", "amount"),
    *("currency", "metadata", "credit_user_id", "credits", "credits_v", "client_reference_id"),
    *("customer", "billing_reason", "amount_paid", "paid_out_of_band", "lines", "data", "has_more"),
    *("parent", "subscription_details", "subscription_item_details", "proration", "type", "price"),
    *("plan", "pricing", "price_details", "lookup_key", "quantity"),
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["paid", USER, "1000", "1", STUDIO, "cus_1", 10**12]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
BODIES = [name for name in names() if thing(name)["object"] in KINDS]


def decisive(value):
    """Every decisive field inside, as the object that has it and its name."""
    if isinstance(value, dict):
        yield from ((value, name) for name in value.keys() & DECISIVE)
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from decisive(inner)


@settings(derandomize=True, max_examples=unless_long(150, 500))
@given(
    name=st.sampled_from(BODIES),
    edits=st.lists(st.tuples(st.integers(0, 200), JSON), max_size=3),
    listed=st.none() | st.lists(JSON, max_size=2) | st.just(PACKS),
    policy=st.sampled_from(
        [POLICY, BY_REFERENCE, NO_CATALOGUE, replace(POLICY, allow_free_orders=True)]
    ),
)
def test_any_shape_of_json_raises_only_needs_or_unresolved(name, edits, listed, policy):
    obj = thing(name)
    for place, value in edits:
        fields = sorted(decisive(obj), key=lambda field: field[1])
        within, field = fields[place % len(fields)]
        within[field] = value
    try:
        verdict = judged(obj, policy, listed)
    except (Needs, Unresolved):
        return
    if isinstance(verdict, Nothing):
        return
    assert 1 <= verdict.credits <= CREDITS_MAX
    assert 0 <= verdict.amount_minor < 2**63
    assert re.fullmatch("stripe:[A-Za-z0-9_]{1,120}", verdict.payment_ref)
    assert re.fullmatch("[a-z]{3}", verdict.currency)
