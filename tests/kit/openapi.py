"""Checks answers against the gateway's OpenAPI document."""

import json
import re
from functools import cache
from importlib import resources

import httpx
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

_URI = "urn:gateway"
_FILES = re.compile(r"/[a-z]+\.([0-9a-f]{16}\.)?(js|css|svg|d\.ts)")


@cache
def document() -> dict:
    return json.loads((resources.files("credit_service.gateway") / "openapi.json").read_text())


@cache
def _registry() -> Registry:
    return Registry().with_resource(_URI, Resource(document(), DRAFT202012))


def _resolved(node: dict) -> dict:
    while "$ref" in node:
        found = document()
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def check_schema(schema: dict, value: object) -> None:
    """Validates a value against a schema of the document."""
    pinned = json.loads(json.dumps(schema).replace('"#/', f'"{_URI}#/'))
    Draft202012Validator(pinned, registry=_registry(), format_checker=FormatChecker()).validate(
        value
    )


def operation_of(method: str, path: str) -> dict | None:
    """The operation of a request; None if the document has none."""
    for template, item in document()["paths"].items():
        pattern = "/".join(
            "[^/]+" if part.startswith("{") else re.escape(part) for part in template.split("/")
        )
        if re.fullmatch(pattern, path) and method.lower() in item:
            return item[method.lower()]
    return None


async def check_answer(response: httpx.Response) -> None:
    """Fails if the document does not describe an answer."""
    method, path = response.request.method, response.request.url.path
    operation = operation_of(method, path)
    kind = response.headers.get("content-type", "").partition(";")[0]
    if operation is None:
        unknown = response.status_code in {403, 404, 405} or method in {"HEAD", "OPTIONS"}
        assert unknown or _FILES.fullmatch(path), f"{method} {path} is not in the document"
        return
    documented = operation["responses"].get(str(response.status_code))
    assert documented is not None, (
        f"{method} {path} answers {response.status_code}, which is not documented"
    )
    documented = _resolved(documented)
    for name, header in documented.get("headers", {}).items():
        value = response.headers.get(name)
        assert value is not None or not header.get("required"), f"{method} {path} lacks {name}"
        check_schema(header["schema"], value)
    if "content" not in documented:
        return
    assert kind in documented["content"], f"{method} {path} answers {kind}"
    schema = documented["content"][kind].get("schema")
    if schema is not None and kind != "text/event-stream":
        check_schema(schema, json.loads(await response.aread()))
