"""Reads settings from TOML, or from tables such as JSON has them, and tells every mistake at once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from incus_numa import quantities
from incus_numa.cpuset import MAX_ID
from incus_numa.errors import ConfigError
from incus_numa.settings.checking import check_settings
from incus_numa.settings.tables import MemorySettings, Reservation, Settings

_PLAIN: Mapping[Any, str] = {bool: "expected true or false", str: "expected a text"}

_NODE_ID = re.compile(r"0|[1-9][0-9]{0,4}")


def parse_settings(text: str) -> Settings:
    """Settings from TOML. Raises ConfigError naming every wrong key, its value and what is expected."""
    settings, problems = salvage_settings(text)
    if problems:
        raise ConfigError(problems)
    return settings


def salvage_settings(text: str) -> tuple[Settings, tuple[str, ...]]:
    """What can be read of a file, and every problem: for those who have more to check and tell everything at once.

    Wrong keys have their defaults. Raises ConfigError if it is not TOML.
    """
    try:
        # The toml library takes `[1, 2` for `[1]` and leaks its own errors, so it only writes.
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise ConfigError((f"not TOML: {error}",)) from error
    return read_tables(tables)


def read_tables(tables: Mapping[str, Any]) -> tuple[Settings, tuple[str, ...]]:
    """The same from tables, such as JSON has them. Wrong keys have their defaults; every problem is told."""
    problems: list[str] = []
    known = get_type_hints(Settings)
    values: dict[str, Any] = {}
    for name, table in tables.items():
        if name not in known:
            problems.append(f"[{name}]: unknown table; expected one of {', '.join(known)}")
        elif not isinstance(table, dict):
            problems.append(f"{name} = {table!r}: expected a table [{name}]")
        else:
            values[name] = _table(name, known[name], table, problems)
    settings = Settings(**values)
    # Sums of which a part could not be read would only look wrong.
    is_whole = not any(problem.startswith("memory") for problem in problems)
    problems.extend(check_settings(settings if is_whole else replace(settings, memory=MemorySettings())))
    return settings, tuple(problems)


def check_value(table: str, key: str, value: object) -> tuple[str, ...]:
    """Problems of one key by itself, one sentence each; there must be such a table."""
    problems: list[str] = []
    _table(table, get_type_hints(Settings)[table], {key: value}, problems)
    return tuple(problems)


def _table(name: str, kind: Any, table: dict[str, Any], problems: list[str]) -> Any:
    """The table's value from its valid keys; every invalid key is added to the problems."""
    hints = get_type_hints(kind, include_extras=True)
    values = {}
    for one, raw in table.items():
        if one not in hints:
            problems.append(f"{name}.{one}: unknown key; expected one of {', '.join(hints)}")
            continue
        if (name, one) in _AMOUNTS:
            values[one] = _AMOUNTS[name, one](f"{name}.{one}", raw, problems)
            continue
        try:
            values[one] = msgspec.convert(raw, hints[one])
        except (msgspec.ValidationError, OverflowError) as error:
            told = _expected(hints[one], raw) or str(error).replace("`", "")
            problems.append(f"{name}.{one} = {_short(raw)}: {told}")
    return kind(**values)


def _expected(hint: Any, raw: object) -> str:
    """What a key takes, as its meaning has it; empty where msgspec says it better."""
    if get_origin(hint) is Literal:
        return f"expected one of {', '.join(get_args(hint))}"
    if hint in _PLAIN:
        return _PLAIN[hint]
    if get_origin(hint) is not Annotated:
        return ""
    kind, *limits = get_args(hint)
    found = next((one for one in limits if isinstance(one, msgspec.Meta)), None)
    if found is None or found.ge is None or found.le is None:
        return ""
    told = f"{found.ge:g} to {found.le:g}"
    if kind is int:
        return f"expected {told}" if type(raw) is int else f"expected a whole number from {told}"
    return f"expected {told}" if type(raw) in (int, float) else f"expected a number from {told}"


def _amount(name: str, raw: object, problems: list[str]) -> int:
    try:
        return quantities.parse_memory(raw)
    except ValueError as error:
        problems.append(f"{name} = {_short(raw)}: {error}")
        return 0


def _reservations(name: str, raw: object, problems: list[str]) -> tuple[Reservation, ...]:
    """The reservations that can be read; every other one is added to the problems."""
    if not isinstance(raw, Mapping):
        problems.append(f'{name} = {_short(raw)}: expected a table of node id to amount, such as {{"0" = "2GiB"}}')
        return ()
    found = []
    for node, amount in raw.items():
        if not _NODE_ID.fullmatch(node) or int(node) >= MAX_ID:
            problems.append(f"{name}: bad node id {_short(node)}: expected a number from 0 to {MAX_ID - 1}")
            continue
        before = len(problems)
        size = _amount(f"{name}.{node}", amount, problems)
        if len(problems) == before:
            found.append(Reservation(int(node), size))
    return tuple(sorted(found))


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:
        # Python does not write out integers of thousands of digits.
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


_AMOUNTS: Mapping[tuple[str, str], Callable[[str, object, list[str]], Any]] = {
    ("memory", "reserved_total"): _amount,
    ("memory", "reserved"): _reservations,
    ("rebalance", "max_bytes"): _amount,
    ("rebalance", "bytes_per_second"): _amount,
}
