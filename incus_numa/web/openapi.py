"""The OpenAPI 3.1 document, made from the table of routes and the types of what is asked and answered."""

from __future__ import annotations

from typing import Any, get_args, get_origin

import msgspec

from incus_numa import __version__
from incus_numa.web import asked
from incus_numa.web.answers import ProblemDetails
from incus_numa.web.problems import CONTENT_TYPE
from incus_numa.web.routes import JSON, ROUTES, Route

_REF = "#/components/schemas/"

_PROBLEMS = {
    400: "This is no HTTP, a line of it is longer than 8190 bytes, or its body is not JSON.",
    401: "Over TCP this needs the token.",
    403: "This is not for you, or not over TCP.",
    404: "There is no such thing here.",
    408: "The body did not come in time.",
    409: "Something else is under way, or nothing was measured yet.",
    412: "It was changed meanwhile, or If-Match names something else.",
    413: "The body is larger than 64 KiB.",
    415: "The body has to be JSON.",
    421: "The Host header has a name that is not ours.",
    422: "The request is not valid; `errors` has every mistake.",
    500: "It failed; the log says more.",
    503: "Too many ask at the same time, or the server cannot be reached.",
}
_ALWAYS = (400, 401, 403, 421, 422, 500, 503)
_WITH_BODY = (408, 413, 415, 422)


def make_document() -> dict[str, Any]:
    """The document as plain values."""
    types = [ProblemDetails, *(_inner(one) for route in ROUTES for one in route.answers.values())]
    _, schemas = msgspec.json.schema_components(types, ref_template=f"{_REF}{{name}}")
    bodies = [route.body for route in ROUTES if route.body not in (None, asked.PolicyTables)]
    _, asked_for = msgspec.json.schema_components(bodies, ref_template=f"{_REF}{{name}}")
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "incus-numa",
            "version": __version__,
            "summary": "See and steer the NUMA placement of Incus and LXD instances",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": {**schemas, **asked_for, asked.PolicyTables.__name__: asked.describe_policy()},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The token of api.token_file: for changes over TCP, and for all where TCP can be "
                    "reached from outside. The unix socket needs none.",
                }
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": route.name, "summary": route.summary}
    if parameters := [*_places(route), *_query(route), *_headers(route)]:
        operation["parameters"] = parameters
    if route.body is not None:
        content: dict[str, Any] = {"schema": {"$ref": f"{_REF}{route.body.__name__}"}}
        if route.examples:
            content["examples"] = {name: {"value": value} for name, value in route.examples.items()}
        operation["requestBody"] = {"required": True, "content": {JSON: content}}
    operation["responses"] = _responses(route)
    return operation


def _responses(route: Route) -> dict[str, Any]:
    found: dict[str, Any] = {
        str(status): {
            "description": route.summary,
            "content": {kind: {"schema": _schema(answer)} for kind in route.kinds},
        }
        | ({"headers": _sent(route)} if route.sends else {})
        for status, answer in route.answers.items()
    }
    statuses = {*_ALWAYS, *route.problems, *(_WITH_BODY if route.body is not None else ())}
    schema = {"$ref": f"{_REF}{ProblemDetails.__name__}"}
    for status in sorted(statuses):
        found[str(status)] = {"description": _PROBLEMS[status], "content": {CONTENT_TYPE: {"schema": schema}}}
    return found


def _places(route: Route) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": meaning,
            "schema": {"type": "string", "minLength": 1},
        }
        for name, meaning in route.places.items()
    ]


def _query(route: Route) -> list[dict[str, Any]]:
    _, schemas = msgspec.json.schema_components([route.query])
    properties = schemas[route.query.__name__]["properties"]
    return [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in properties.items()]


def _headers(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "required": False, "description": meaning, "schema": {"type": "string"}}
        for name, meaning in route.takes.items()
    ]


def _sent(route: Route) -> dict[str, Any]:
    return {
        name: {"required": True, "description": meaning, "schema": {"type": "string"}}
        for name, meaning in route.sends.items()
    }


def _inner(answer: Any) -> Any:
    return get_args(answer)[0] if get_origin(answer) is list else answer


def _schema(answer: Any) -> dict[str, Any]:
    """A named type as a reference, a list of these as a list of references; anything else as it is."""
    (schema,), _ = msgspec.json.schema_components([answer], ref_template=f"{_REF}{{name}}")
    return schema
