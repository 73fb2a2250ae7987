"""The catalogue file: the credits that it gives per price, and the reports of its faults."""

from datetime import timedelta

import pytest

from credit_service.runtime.environment import ConfigurationError
from stripe_bridge.catalog import CREDITS_MAX, Catalog, Listed, Pack, Validity

STARTER = """
[[pack]]
id = "starter"
name = "100 credits"
credits = 100
price = "price_starter"
amount_minor = 900
currency = "eur"
"""
STUDIO = """
[[pack]]
id = "studio"
name = "1.000 Credits für Studios"
credits = 1000
lookup_key = "credits_1000"
amount_minor = 7900
currency = "eur"
"""
MONTHLY = """
[[price]]
lookup_key = "studio_monthly"
credits = 500

[[price]]
price = "plan 2019 gold"
credits = 250
"""
PLAN = """
[[price]]
price = "price_plan"
credits = 500
"""
CATALOG = Catalog.parse(STARTER + STUDIO + MONTHLY)


def changed(line, to):
    """The starter pack with one of its lines changed."""
    assert line in STARTER
    return STARTER.replace(line, to)


def test_packs_come_in_the_order_of_the_file_and_are_found_by_id():
    assert [pack.id for pack in CATALOG.packs] == ["starter", "studio"]
    assert CATALOG.pack("studio") == Pack(
        id="studio",
        name="1.000 Credits für Studios",
        credits=1000,
        price=None,
        lookup_key="credits_1000",
        amount_minor=7900,
        currency="eur",
    )
    assert CATALOG.pack("price_starter") is None


@pytest.mark.parametrize(
    ("price", "per_unit"),
    [
        ("price_starter", 100),
        ({"id": "price_starter", "lookup_key": None}, 100),
        ({"id": "price_new", "lookup_key": "credits_1000"}, 1000),
        ({"id": "price_month", "lookup_key": "studio_monthly"}, 500),
        ("plan 2019 gold", 250),
        ({"id": "plan 2019 gold", "object": "plan"}, 250),
        ("credits_1000", None),
        ({"id": "credits_1000", "lookup_key": "price_starter"}, None),
        ("price_other", None),
        ({}, None),
        ({"id": ["price_starter"], "lookup_key": {"credits_1000": 1}}, None),
        (None, None),
        (100, None),
        (["price_starter"], None),
    ],
)
def test_a_price_gives_the_credits_listed_for_its_id_or_lookup_key(price, per_unit):
    assert CATALOG.find(price) == (per_unit and Listed(per_unit))


def test_the_id_of_a_price_takes_precedence_over_its_lookup_key():
    price = {"id": "price_starter", "lookup_key": "credits_1000"}
    assert CATALOG.find(price) == Listed(100)


def test_a_catalogue_that_lists_nothing_is_empty():
    assert Catalog().is_empty
    assert not CATALOG.is_empty
    assert not Catalog.parse('[[price]]\nlookup_key = "monthly"\ncredits = 1').is_empty


@pytest.mark.parametrize("per_unit", [1, CREDITS_MAX])
def test_credits_of_a_price_are_one_to_a_million_million(per_unit):
    listed = Catalog.parse(changed("credits = 100", f"credits = {per_unit}"))
    assert listed.find("price_starter") == Listed(per_unit)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must hold [[pack]] or [[price]] tables"),
        ("credits = 100", "credits: Extra inputs are not permitted"),
        ("pack = 1", "pack: Input should be a valid list"),
        ("[[price", "is not TOML: Expected ']]' at the end of an array declaration"),
        (STARTER + STARTER, "lists pack starter twice"),
        (
            STARTER + '[[price]]\nprice = "price_starter"\ncredits = 100',
            "lists price price_starter twice",
        ),
        (STUDIO + MONTHLY.replace("studio_monthly", "credits_1000"), "lists lookup_key credits_10"),
        (changed('price = "price_starter"', ""), "pack 1: must have either price or lookup_key"),
        (STARTER + 'lookup_key = "x"', "pack 1: must have either price or lookup_key"),
        (STARTER + "unit = 1", "pack 1: unit: Extra inputs are not permitted"),
        (STARTER + "[[price]]\ncredits = 1", "price 1: must have either price or lookup_key"),
        (changed("credits = 100", "credits = 0"), "pack 1: credits: must be 1 to 1000000000000"),
        (changed("credits = 100", "credits = -5"), "pack 1: credits: must be 1 to 1000000000000"),
        (
            changed("credits = 100", f"credits = {CREDITS_MAX + 1}"),
            "pack 1: credits: must be 1 to 1000000000000",
        ),
        (changed("credits = 100", "credits = 1e3"), "pack 1: credits: Input should be a valid int"),
        (changed("credits = 100", "credits = true"), "pack 1: credits: Input should be a valid"),
        (changed("credits = 100", 'credits = "100"'), "pack 1: credits: Input should be a valid"),
        (changed("amount_minor = 900", "amount_minor = 9.0"), "pack 1: amount_minor: Input should"),
        (changed("amount_minor = 900", "amount_minor = 0"), "pack 1: amount_minor: must be 1 to"),
        (changed('"eur"', '"EUR"'), "pack 1: currency: must be a three-letter code in lower case"),
        (changed('"starter"', '"Starter pack"'), "pack 1: id: must be a short word of a-z, 0-9, _"),
        (changed('"100 credits"', '"100\\ncredits"'), "pack 1: name: must be 1 to 100 characters"),
        (
            STARTER + 'valid_for = "a year"',
            "pack 1: valid_for: must be a time such as 365d, 12w or",
        ),
        (STARTER + 'valid_for = "0d"', "pack 1: valid_for: must be a time such as 365d"),
        (STARTER + 'valid_for = "3654d"', "pack 1: valid_for: must be a time such as 365d"),
        (STARTER + 'valid_for = "99999w"', "pack 1: valid_for: must be a time such as 365d"),
        (STARTER + "valid_for = 365", "pack 1: valid_for: must be a time such as 365d"),
        (STARTER + 'expires = "period"', "pack 1: expires: Extra inputs are not permitted"),
        (PLAN + 'expires = "month"', "price 1: expires: must be period, the only expiry that"),
        (PLAN + "expires = true", "price 1: expires: Input should be a valid string"),
        (PLAN + 'expires = "period"\nvalid_for = "9d"', "price 1: must have either expires or val"),
        (PLAN + "carry_over = 1", 'price 1: carry_over needs expires = "period"'),
        (PLAN + 'expires = "period"\ncarry_over = -1', "price 1: carry_over: must be 0 to 120 per"),
        (PLAN + 'expires = "period"\ncarry_over = 121', "price 1: carry_over: must be 0 to 120"),
        (PLAN + 'expires = "period"\ncap = 5', "price 1: cap needs a carry_over of 1 or more"),
        (
            PLAN + 'expires = "period"\ncarry_over = 1\ncap = -1',
            "price 1: cap: must be 0 to 1000000000000",
        ),
        (changed('"price_starter"', '" price"'), "pack 1: price: must be 1 to 200 ASCII"),
        (changed('"price_starter"', '"pr\u0131ce"'), "pack 1: price: must be 1 to 200 ASCII"),
    ],
)
def test_an_unusable_file_is_refused_in_one_line_that_says_why(text, problem):
    with pytest.raises(ConfigurationError) as refusal:
        Catalog.parse(text)
    assert str(refusal.value).startswith(problem)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("written", "validity"),
    [
        ("", Validity()),
        ('valid_for = "365d"', Validity(timedelta(days=365))),
        ('valid_for = "48h"', Validity(timedelta(days=2))),
        ('valid_for = "3653d"', Validity(timedelta(days=3653))),
        ('expires = "period"', Validity(by_period=True)),
        ('expires = "period"\ncarry_over = 0', Validity(by_period=True)),
        ('expires = "period"\ncarry_over = 2', Validity(by_period=True, carry_over=2)),
        (
            'expires = "period"\ncarry_over = 1\ncap = 0',
            Validity(by_period=True, carry_over=1, cap=0),
        ),
    ],
)
def test_a_price_says_how_long_its_credits_last(written, validity):
    assert Catalog.parse(PLAN + written).find("price_plan") == Listed(500, validity)


def test_a_pack_says_how_long_its_credits_last():
    catalog = Catalog.parse(STARTER + 'valid_for = "52w"')
    assert catalog.packs[0].valid_for == timedelta(weeks=52)
    assert catalog.find("price_starter") == Listed(100, Validity(timedelta(weeks=52)))


def test_every_fault_of_a_file_is_named_at_once():
    faulty = STUDIO + changed("credits = 100", "credits = 0").replace('"eur"', '"euro"')
    with pytest.raises(ConfigurationError) as refusal:
        Catalog.parse(faulty)
    assert str(refusal.value) == (
        "pack 2: credits: must be 1 to 1000000000000; "
        "pack 2: currency: must be a three-letter code in lower case such as eur"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file or directory"),
        (b"\xff", "is not UTF-8"),
        (b"", "must hold [[pack]] or [[price]] tables"),
    ],
)
def test_a_refusal_names_the_file(tmp_path, content, problem):
    path = tmp_path / "catalog.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as refusal:
        Catalog.read(path)
    assert str(refusal.value) == f"{path}: {problem}"


def test_reading_a_file_gives_the_same_as_parsing_its_text(tmp_path):
    path = tmp_path / "catalog.toml"
    path.write_text(STARTER + STUDIO + MONTHLY, encoding="utf-8")
    assert Catalog.read(path) == CATALOG
