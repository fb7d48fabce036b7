"""What is answered when something cannot be done: problem details of RFC 9457, and what they are made from.

No answer has a traceback, or anything else that a client did not send or may not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import msgspec
from aiohttp import web

from incus_numa.errors import ChangedError, ConfigError, GoneError, IncusNumaError, RetryError, UnreachableError

CONTENT_TYPE = "application/problem+json"
UNNAMED = "about:blank"
"""The type of a problem of which the HTTP status says everything."""

AGAIN_S = 5
"""When to come again, where that may help."""

_AT = " - at `$"
"""msgspec tells the place of a mistake after this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """One thing that is wrong with a request, as a sentence; `pointer` says where in its body (RFC 6901)."""

    detail: str
    pointer: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A problem before it is written. `kind` is its type, `detail` a sentence for people."""

    status: int
    detail: str
    title: str = ""
    kind: str = UNNAMED
    errors: tuple[Mistake, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """A request that is not carried out, with what is answered."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.detail)


def respond(problem: Problem, path: str) -> web.Response:
    """The answer to a request for this path."""
    document: dict[str, object] = {
        "type": problem.kind,
        "title": problem.title or _phrase(problem.status),
        "status": problem.status,
        "detail": problem.detail,
        "instance": path,
    }
    if problem.errors:
        document["errors"] = [
            {"detail": one.detail} | ({} if one.pointer is None else {"pointer": one.pointer}) for one in problem.errors
        ]
    body = msgspec.json.encode(document)
    return web.Response(status=problem.status, body=body, content_type=CONTENT_TYPE, headers=dict(problem.headers))


def explain(error: IncusNumaError) -> Problem:
    """What one of our errors means to who asked."""
    if isinstance(error, ConfigError):
        mistakes = tuple(Mistake(detail=one) for one in error.problems)
        return invalid(mistakes, kind="urn:incus-numa:invalid-settings", title="The settings are not valid")
    if isinstance(error, UnreachableError):
        title, kind = "The server cannot be reached", "urn:incus-numa:server-unreachable"
        return Problem(status=503, detail=str(error), title=title, kind=kind, headers=_again())
    if isinstance(error, ChangedError):
        return Problem(status=412, detail=str(error), title="It was changed meanwhile", kind="urn:incus-numa:changed")
    if isinstance(error, RetryError):
        title, kind = "Something else is under way", "urn:incus-numa:busy"
        return Problem(status=409, detail=str(error), title=title, kind=kind, headers=_again())
    if isinstance(error, GoneError):
        return Problem(status=404, detail=str(error))
    return Problem(status=500, detail=str(error), title="It failed", kind="urn:incus-numa:failed")


def invalid(mistakes: Iterable[Mistake], *, kind: str = "urn:incus-numa:invalid-request", title: str = "") -> Problem:
    """A request that can be read but makes no sense: 422 with every mistake that is known."""
    found = tuple(mistakes)
    detail = "; ".join(one.detail for one in found)
    return Problem(status=422, detail=detail, title=title or "The request is not valid", kind=kind, errors=found)


def misread(error: msgspec.ValidationError) -> Mistake:
    """What msgspec says about a value, with the place as a JSON pointer."""
    text, found, place = str(error).rpartition(_AT)
    if not found:
        return Mistake(detail=str(error).replace("`", ""))
    steps = place.rstrip("`").replace("[", ".").replace("]", "").split(".")
    return Mistake(detail=text.replace("`", ""), pointer="#" + "/".join(steps))


def explain_http(error: web.HTTPException) -> Problem:
    """What aiohttp raises by itself: no such path, no such method there, too large a body."""
    details = {
        404: "there is nothing at this path; GET /v1/openapi.json tells what there is",
        405: f"expected one of {error.headers.get('Allow', 'other methods')}",
        413: "the body is larger than 64 KiB",
    }
    allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return Problem(status=error.status, detail=details.get(error.status, _phrase(error.status)), headers=allow)


def _again() -> dict[str, str]:
    return {"Retry-After": str(AGAIN_S)}


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
