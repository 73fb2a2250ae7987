"""The price list: what work costs, what cannot be priced, and when the version changes."""

import pytest

from credit_service.errors import InvalidRequest
from credit_service.fields import AMOUNT_MAX
from credit_service.rules.pricing import Line, Price, PriceList

STEMS, RENDER = Price(10, "separation"), Price(5, "render")
PRICES = PriceList({"stem_separation": STEMS, "render": RENDER})


@pytest.mark.parametrize(
    ("operation", "quantity", "unit_cost", "cost"),
    [
        ("stem_separation", 1, 10, 10),
        ("stem_separation", 3, 10, 30),
        ("render", 1, 5, 5),
        ("render", AMOUNT_MAX // 5, 5, AMOUNT_MAX),
    ],
)
def test_work_costs_quantity_times_unit_cost(operation, quantity, unit_cost, cost):
    line = PRICES.price(operation, quantity, "charge")
    assert line == Line(operation, quantity, unit_cost, cost)


def test_an_unlisted_operation_is_refused_with_the_names_of_the_listed_ones():
    with pytest.raises(InvalidRequest) as refusal:
        PRICES.price("juggling", 1, "items[3]")
    assert refusal.value.field == "items[3].operation"
    assert refusal.value.problem == (
        "'juggling' is not on the price list (render, stem_separation)."
    )


@pytest.mark.parametrize("quantity", [AMOUNT_MAX // 5 + 1, AMOUNT_MAX])
def test_work_that_would_cost_more_than_the_largest_amount_is_refused(quantity):
    with pytest.raises(InvalidRequest) as refusal:
        PRICES.price("render", quantity, "charge")
    assert refusal.value.field == "charge.quantity"
    assert refusal.value.problem == (
        f"would cost {5 * quantity} credits; the maximum is 1000000000000."
    )


def test_the_version_is_the_same_in_every_process_and_release():
    assert PRICES.version == "b1425ecf91c2"


def test_the_version_does_not_depend_on_the_order_of_the_list():
    assert PriceList({"render": RENDER, "stem_separation": STEMS}).version == PRICES.version


@pytest.mark.parametrize(
    "prices",
    [
        {},
        {"stem_separation": STEMS},
        {"stem_separation": STEMS, "render": Price(6, "render")},
        {"stem_separation": STEMS, "render": Price(5, "minute")},
        {"stem_separation": STEMS, "rendering": RENDER},
        {"stem_separation": RENDER, "render": STEMS},
        {"stem_separation": STEMS, "render": RENDER, "mastering": RENDER},
    ],
    ids=["empty", "removed", "cost", "unit", "name", "swapped", "added"],
)
def test_the_version_changes_with_any_price(prices):
    assert PriceList(prices).version != PRICES.version


@pytest.mark.parametrize(
    ("items", "field"),
    [(0, "items"), (1, "items[0].operation"), (100, "items[0].operation"), (101, "items")],
)
async def test_a_quote_takes_one_to_a_hundred_items(client, items, field):
    with pytest.raises(InvalidRequest) as refusal:
        await client.quote_cost({f"unlisted_{place}": 1 for place in range(items)})
    assert refusal.value.field == field
