"""What a request may say: queries and bodies, validated by msgspec and described in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, TypeVar, get_type_hints

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from incus_numa.settings import LIVE_TABLES, RESTART_KEYS, Settings
from incus_numa.web.problems import Mistake, Problem, Refusal, invalid, misread

Project = Annotated[str, Meta(min_length=1, description="Name of a project of the server.")]
Limit = Annotated[int, Meta(ge=1, le=2000, description="No more than so many.")]
MaxMoves = Annotated[int, Meta(ge=0, le=10_000, description="Move no more instances than this.")]

AMOUNT = {"type": ["string", "integer"], "description": "8GiB, 8G, 500M, 8500Mi or bytes."}
_AMOUNTS: Mapping[str, dict[str, Any]] = {
    "reserved_total": AMOUNT,
    "max_bytes": AMOUNT,
    "reserved": {"type": "object", "additionalProperties": AMOUNT},
}

T = TypeVar("T")


class NoQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """Nothing can be asked for."""


class InstancesQuery(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Which instances."""

    project: Project | UnsetType = UNSET


class InstanceQuery(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Where the instance is."""

    project: Project = "default"


class MovesQuery(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How many moves, the newest."""

    limit: Limit = 50


class RebalanceRequest(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One pass by measured load. Without `dry_run` it is made, in the background."""

    dry_run: bool = False
    max_moves: MaxMoves | None = None
    project: Project | None = None


class PolicyTables(Struct, frozen=True):
    """Tables over those of the configuration file, key by key. They replace those that were set before.

    What is in them is checked with the settings, which tell every mistake at once: see `describe_policy`.
    """


def read_query(pairs: Mapping[str, list[str]], kind: type[T]) -> T:
    """The query of a request. Raises Refusal."""
    twice = [Mistake(detail=f"{name}: expected once") for name, values in pairs.items() if len(values) > 1]
    if twice:
        raise Refusal(invalid(twice))
    try:
        return msgspec.convert({name: values[0] for name, values in pairs.items()}, kind, strict=False)
    except msgspec.ValidationError as error:
        mistake = misread(error)
        where = (mistake.pointer or "").removeprefix("#/")
        raise Refusal(invalid([Mistake(detail=f"{where}: {mistake.detail}" if where else mistake.detail)])) from error


def read_body(body: bytes, kind: type[T]) -> T:
    """The body of a request. Raises Refusal."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Refusal(invalid([misread(error)])) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Refusal(Problem(status=400, detail=f"expected JSON in UTF-8: {error}")) from error


def describe_policy() -> dict[str, Any]:
    """The JSON schema of PolicyTables with the keys of each table, from the settings."""
    hints = get_type_hints(Settings)
    return {
        "title": PolicyTables.__name__,
        "description": (PolicyTables.__doc__ or "").partition("\n")[0],
        "type": "object",
        "properties": {name: _describe_table(name, hints[name]) for name in LIVE_TABLES},
        "additionalProperties": False,
        "example": {"placement": {"smt": "pack"}, "rebalance": {"enabled": False}},
    }


def _describe_table(name: str, kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    properties = {
        one.name: _describe_key(one.name, hints[one.name]) | {"description": one.metadata["meaning"]}
        for one in fields(kind)
        if (name, one.name) not in RESTART_KEYS
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _describe_key(name: str, hint: Any) -> dict[str, Any]:
    return dict(_AMOUNTS[name]) if name in _AMOUNTS else msgspec.json.schema(hint)
