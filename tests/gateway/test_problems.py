"""Every error has a row, and a row shows its figures and nothing else."""

import dataclasses
import json

import pytest

from credit_service import errors
from credit_service.gateway import Problem, problem_response
from credit_service.gateway.problems import ROWS


def concrete_errors():
    def below(kind):
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    return [kind for kind in below(errors.CreditError) if "reason" in vars(kind)]


def sample(kind):
    """An error whose facts all differ, so that none can be mistaken for another."""
    facts = {
        field.name: 1000 + place if field.type == "int" else f"the {field.name}"
        for place, field in enumerate(dataclasses.fields(kind))
    }
    return kind(**facts)


def rendered(error):
    response = problem_response(error)
    assert response.media_type == "application/problem+json"
    assert response.headers["cache-control"] == "no-store, no-transform"
    return response, json.loads(response.body)


@pytest.mark.parametrize("kind", concrete_errors(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_service_has_a_row(kind):
    row = ROWS["service", kind.reason]
    assert set(row.figures) <= {field.name for field in dataclasses.fields(kind)}
    error = sample(kind)
    response, body = rendered(error)
    assert (response.status_code, body["status"], body["reason"]) == (
        row.status, row.status, row.reason
    )  # fmt: skip
    known = {"type", "title", "status", "detail", "reason"}
    assert body.keys() - known == set(row.figures)
    for name in row.figures:
        assert body[name] == getattr(error, name)
    # A fact that is not among the figures is not in the sentence either, unless the sentence is
    # the error's own.
    if row.detail is not None:
        hidden = {field.name for field in dataclasses.fields(kind)} - set(row.figures)
        for name in hidden:
            assert str(getattr(error, name)) not in json.dumps(body)
    assert ("retry-after" in response.headers) == (row.status in {429, 503})


def test_no_row_is_for_an_error_that_never_occurs():
    reasons = {kind.reason for kind in concrete_errors()}
    assert {reason for source, reason in ROWS if source == "service"} == reasons


@pytest.mark.parametrize(
    ("error", "status", "figures"),
    [
        (
            errors.InsufficientCredits(30, 10, 5, 20),
            402,
            {"required": 30, "available": 10, "held": 5, "shortfall": 20},
        ),
        (errors.PriceChanged(12, "v2"), 409, {"cost": 12, "price_version": "v2"}),
        (
            errors.AboveSpendLimit(11, "day", 10),
            409,
            {"required": 11, "window": "day", "limit": 10},
        ),
        (errors.AccountFrozen(), 403, {}),
        (errors.InvalidRequest("user_id", "is missing."), 400, {"field": "user_id"}),
        (errors.LedgerUnavailable(), 503, {}),
        (errors.OutcomeUnknown("spend:1:1"), 503, {}),
        (errors.Unauthenticated("token"), 503, {}),
        (errors.PermissionDenied("web", "spend"), 503, {}),
        (errors.InternalError(), 500, {}),
    ],
)
def test_an_apps_own_routes_answer_in_the_same_words(error, status, figures):
    response, body = rendered(error)
    assert response.status_code == status
    for name, value in figures.items():
        assert body[name] == value
    if status == 500:
        assert "detail" not in body


def test_a_limit_says_when_to_retry():
    response, body = rendered(errors.SpendLimitExceeded("hour", 100, 90, 1_500))
    assert (response.status_code, response.headers["retry-after"]) == (429, "2")
    assert (body["window"], body["limit"], body["spent"]) == ("hour", 100, 90)


def test_an_unknown_refusal_is_answered_without_its_words():
    response, body = rendered(
        errors.UnknownRefusal("UNHEARD_OF", "words of a proxy", {"figure": "1"})
    )
    assert (response.status_code, body["reason"]) == (409, "REFUSED")
    assert "proxy" not in body["detail"]
    assert "figure" not in body
    # A proxy that refuses the gateway sends only a status code, without a reason.
    response, _ = rendered(errors.UnknownRefusal("UNAUTHENTICATED", "words of a proxy", {}))
    assert response.status_code == 503


@pytest.mark.parametrize("key", ROWS, ids=" ".join)
def test_every_row_can_be_rendered(key):
    source, reason = key
    if source == "service":
        return
    row = ROWS[key]
    figures = dict.fromkeys(row.figures, 1)
    response, body = rendered(Problem(reason, "a sentence", source=source, secret="x", **figures))
    assert response.status_code == row.status
    assert body.keys() >= set(row.figures)
    assert "secret" not in body
