"""The OpenAPI document: valid, complete, and in the words of the code."""

import re

import pytest
from jsonschema import ValidationError
from kit.gateways import gateway_settings, named_users, running_gateway
from kit.openapi import check_schema, document, operation_of
from openapi_spec_validator import validate

from credit_service.client import CreditClient
from credit_service.gateway import Gateway, render
from credit_service.gateway.problems import ROWS

NOWHERE = "127.0.0.1:9"
FILES = re.compile(r"/[a-z]+\.[a-z0-9.]+")


def test_the_document_is_valid():
    validate(document())


async def test_every_route_is_documented_and_every_documented_route_exists():
    async with CreditClient(NOWHERE) as client:
        routes = Gateway(client, users=named_users).app.routes
    made = {
        (method, route.path)
        for route in routes
        for method in route.methods - {"HEAD"}
        if not FILES.fullmatch(route.path)
    }
    documented = {
        (method.upper(), path) for path, item in document()["paths"].items() for method in item
    }
    files = {each for each in documented if FILES.fullmatch(each[1])}
    assert {path for _, path in files} == {"/credits.js", "/credits.d.ts", "/openapi.json"}
    assert documented - files == made


def test_every_type_and_figure_is_documented():
    schemas = document()["components"]["schemas"]
    assert set(schemas["TransactionType"]["enum"]) == set(render.TYPES)
    documented = set(schemas["Problem"]["properties"])
    for row in ROWS.values():
        assert set(row.figures) <= documented


def test_every_reason_of_the_gateway_is_documented():
    text = str(document())
    for (source, _), row in ROWS.items():
        if source != "service":
            assert row.reason in text, row.reason


def test_a_schema_refuses_unknown_answers():
    # Otherwise a check of an answer against the document would prove nothing.
    with pytest.raises(ValidationError):
        check_schema({"$ref": "#/components/schemas/Account"}, {"balance": 1})
    assert operation_of("GET", "/checkouts/cs_1234567890/refresh") is None


async def test_the_document_is_served(tmp_path):
    async with running_gateway(gateway_settings(NOWHERE)) as gateway:
        answer = await gateway.http.get("/openapi.json")
        assert answer.json() == document()
