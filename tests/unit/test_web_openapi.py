"""The OpenAPI document is valid, complete, and says what the code does."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from incus_numa.errors import ConfigError, GoneError, ReportError, RetryError, UnreachableError
from incus_numa.settings import LIVE_TABLES, RESTART_KEYS, Settings, settings_as_dict
from incus_numa.web import asked, problems
from incus_numa.web.app import Api
from incus_numa.web.openapi import make_document
from incus_numa.web.problems import Mistake, Refusal
from incus_numa.web.routes import ROUTES


def test_the_document_is_valid_openapi() -> None:
    document: Any = make_document()
    assert document["openapi"].startswith("3.1.")
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_every_route_is_documented_and_answered() -> None:
    told = {(path, method.upper()) for path, own in make_document()["paths"].items() for method in own}
    assert told == {(one.path, one.method) for one in ROUTES}
    assert all(callable(getattr(Api, one.name)) for one in ROUTES)


def test_every_answer_that_is_no_success_is_a_problem() -> None:
    for path, own in make_document()["paths"].items():
        for method, operation in own.items():
            refusals = {int(status): one for status, one in operation["responses"].items() if int(status) >= 400}
            assert {400, 401, 403, 421, 503} <= refusals.keys(), (path, method)
            assert all(list(one["content"]) == ["application/problem+json"] for one in refusals.values())


def test_the_policy_is_described_by_the_keys_that_can_be_set() -> None:
    schema = asked.describe_policy()
    told = {(name, one) for name, table in schema["properties"].items() for one in table["properties"]}
    whole = settings_as_dict(Settings())
    assert told == {(name, one) for name in LIVE_TABLES for one in whole[name]} - RESTART_KEYS


@pytest.mark.parametrize("route", [one for one in ROUTES if one.body is not None], ids=lambda one: one.name)
def test_examples_of_bodies_are_accepted(route: Any) -> None:
    assert route.examples
    for body in route.examples.values():
        asked.read_body(msgspec.json.encode(body), route.body)


@pytest.mark.parametrize(
    ("error", "status", "again"),
    [
        (ConfigError(("a: wrong", "b: wrong")), 422, False),
        (UnreachableError("no server"), 503, True),
        (RetryError("busy"), 409, True),
        (GoneError("gone"), 404, False),
        (ReportError("disk full"), 500, False),
    ],
)
def test_each_kind_of_error_has_its_status(error: Any, status: int, again: bool) -> None:
    problem = problems.explain(error)
    assert (problem.status, "Retry-After" in problem.headers) == (status, again)


def test_every_problem_of_settings_is_told() -> None:
    problem = problems.explain(ConfigError(("a: wrong", "b: wrong")))
    assert problem.errors == (Mistake(detail="a: wrong"), Mistake(detail="b: wrong"))


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [({}, 50), ({"limit": ["7"]}, 7), ({"limit": ["2000"]}, 2000)],
)
def test_a_query_is_read(pairs: dict[str, list[str]], expected: int) -> None:
    assert asked.read_query(pairs, asked.MovesQuery).limit == expected


@pytest.mark.parametrize("pairs", [{"limit": ["x"]}, {"limit": ["0"]}, {"limit": ["1", "1"]}, {"other": ["1"]}])
def test_a_query_that_makes_no_sense_is_refused(pairs: dict[str, list[str]]) -> None:
    with pytest.raises(Refusal) as refusal:
        asked.read_query(pairs, asked.MovesQuery)
    assert refusal.value.problem.status == 422
