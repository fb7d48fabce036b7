"""Tables over those of the configuration file: a policy that is set while the daemon runs. Pure.

`put_over` is for whoever sets one: it is right as a whole, or nothing of it is taken. `salvage_over` is for one that is
kept: what is no longer right of it, after an upgrade or on other hardware, is left out, and the rest stays in force.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from incus_numa.errors import ConfigError
from incus_numa.settings.reading import check_value, read_tables
from incus_numa.settings.tables import LIVE_TABLES, RESTART_KEYS, Settings
from incus_numa.settings.writing import settings_as_dict

Tables = Mapping[str, Any]
"""Tables of values as JSON has them, by name; what was not checked yet may be anything else."""

FindMisfits = Callable[[Settings], tuple[str, ...]]
"""What of settings the machine cannot keep, one sentence each."""

HALTED: Tables = {"rebalance": {"enabled": False}}
"""In force while it cannot be told whether moves are allowed: nobody is moved against an order that cannot be read."""

_HALTS = "nothing moves by load until this is put right, set anew, or taken back by `incus-numa policy set --reset`"
_MOVES = ("rebalance", "rebalance.enabled")
_TOGETHER = ("memory",)
"""Tables whose keys are only right together: amounts must add up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """What was set and is not in force: a key such as `placement.smt`, a table, or None for all, and why."""

    key: str | None
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlay:
    """Settings with `tables` over them, and what was left out of these."""

    settings: Settings
    tables: Tables = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()


def put_over(settings: Settings, tables: Tables, find_misfits: FindMisfits) -> Settings:
    """Settings with these tables over them, key by key. Raises ConfigError with every problem."""
    strange = {name: told for name, table in tables.items() if (told := _check_table(name, table))}
    problems = list(strange.values())
    problems += [
        _fixed(name, key)
        for name, key in sorted(RESTART_KEYS)
        if isinstance(table := tables.get(name), Mapping) and key in table
    ]
    found, wrong = _merge(settings, {name: table for name, table in tables.items() if name not in strange})
    problems += [*wrong, *find_misfits(found)]
    if problems:
        raise ConfigError(tuple(problems))
    return found


def salvage_over(settings: Settings, tables: Tables, find_misfits: FindMisfits) -> Overlay:
    """Settings with what is right of these tables over them. What the settings themselves lack is no matter here."""
    good, left_out = _sift(tables)

    def problems_with(kept: Tables) -> dict[str, None]:
        found, wrong = _merge(settings, kept)
        return dict.fromkeys((*wrong, *find_misfits(found)))

    own = problems_with({})
    if problems_with(good).keys() - own:
        # Some of it does not fit: each is tried by itself.
        parts, good = _split(good), {}
        for name, keys in parts:
            if wrong := [one for one in problems_with({name: keys}) if one not in own]:
                key = name if len(keys) > 1 else f"{name}.{next(iter(keys))}"
                left_out.append(LeftOut(key=key, why="; ".join(wrong)))
            else:
                good[name] = {**good.get(name, {}), **keys}
    if any(one.key in _MOVES for one in left_out):
        good["rebalance"] = {**good.get("rebalance", {}), **HALTED["rebalance"]}
    told = tuple(replace(one, why=f"{one.why}; {_HALTS}") if one.key in _MOVES else one for one in left_out)
    return Overlay(settings=_merge(settings, good)[0], tables=good, left_out=told)


def halt(settings: Settings, why: str) -> Overlay:
    """Settings under which nobody is moved by load, as nothing of what was set can be read."""
    found, _ = _merge(settings, HALTED)
    return Overlay(settings=found, tables=HALTED, left_out=(LeftOut(key=None, why=f"{why}; {_HALTS}"),))


def _sift(tables: Tables) -> tuple[dict[str, dict[str, Any]], list[LeftOut]]:
    """What is right by itself, and the rest."""
    good: dict[str, dict[str, Any]] = {}
    left_out = []
    for name, table in tables.items():
        if wrong := _check_table(name, table):
            left_out.append(LeftOut(key=name, why=wrong))
            continue
        for key, value in table.items():
            fixed = (_fixed(name, key),) if (name, key) in RESTART_KEYS else ()
            if problems := (*fixed, *check_value(name, key, value)):
                left_out.append(LeftOut(key=f"{name}.{key}", why="; ".join(problems)))
            else:
                good.setdefault(name, {})[key] = value
    return good, left_out


def _split(tables: Tables) -> list[tuple[str, dict[str, Any]]]:
    """The smallest parts that may be right or wrong by themselves."""
    return [
        (name, part)
        for name, table in tables.items()
        for part in ([dict(table)] if name in _TOGETHER else [{key: value} for key, value in table.items()])
    ]


def _merge(settings: Settings, tables: Tables) -> tuple[Settings, tuple[str, ...]]:
    whole = settings_as_dict(settings)
    return read_tables(whole | {name: whole[name] | dict(table) for name, table in tables.items()})


def _check_table(name: str, table: Any) -> str | None:
    """Why there can be no such table, None where there can."""
    if name not in LIVE_TABLES:
        return f"[{name}]: cannot be set here; expected one of {', '.join(LIVE_TABLES)}"
    return None if isinstance(table, Mapping) else f"{name}: expected a table"


def _fixed(name: str, key: str) -> str:
    return f"{name}.{key}: can only be changed in the file, followed by a restart"
