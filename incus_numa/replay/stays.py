"""Reads a trace: CSV with a header, one row per instance. Pure: text to values."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from incus_numa.errors import ConfigError

COLUMNS = ("id", "arrival_s", "departure_s", "vcpus", "memory_bytes")
"""What the header must name, in any order; more columns are ignored."""

MOST_PROBLEMS = 20
MOST_VCPUS = 1 << 20
MOST_SECONDS = 1e12
MOST_BYTES = 1 << 62

_WHOLE = re.compile(r"[0-9]{1,19}")
_SECONDS = re.compile(r"[0-9]{1,13}(?:\.[0-9]{1,9})?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stay:
    """One instance of a trace. `departure_s` is None when it stays to the end, `memory_bytes` when it is unknown."""

    name: str
    arrival_s: float
    departure_s: float | None
    vcpus: int
    memory_bytes: int | None


class _CellError(Exception):
    """One cell is wrong: its column and what is wrong with it."""

    def __init__(self, column: str, what: str) -> None:
        self.column, self.what = column, what
        super().__init__(f"column {column}: {what}")


def parse_trace(text: str) -> tuple[Stay, ...]:
    """The stays in the order of their arrival, those of one time in the order of the rows.

    Raises ConfigError naming line and column of every wrong cell, up to MOST_PROBLEMS of them.
    """
    rows = csv.reader(text.removeprefix("\N{BYTE ORDER MARK}").splitlines(keepends=True), strict=True)
    try:
        stays, problems = _read(rows, lambda: rows.line_num)
    except csv.Error as error:
        raise ConfigError((f"line {rows.line_num}: {error}",)) from error
    if problems:
        more = len(problems) - MOST_PROBLEMS
        shown = problems[:MOST_PROBLEMS] + ([f"and {more} more problems"] if more > 0 else [])
        raise ConfigError(tuple(shown))
    if not stays:
        raise ConfigError(("no instance in it, only a header",))
    return tuple(sorted(stays, key=lambda stay: stay.arrival_s))


def _read(rows: Iterator[list[str]], line: Callable[[], int]) -> tuple[list[Stay], list[str]]:
    places = _columns(next(rows, []))
    stays: list[Stay] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        try:
            stay = _stay(row, places)
            if stay.name in seen:
                raise _CellError("id", f"{stay.name!r} is on line {seen[stay.name]}, too")
        except _CellError as error:
            problems.append(f"line {line()}, {error}")
            continue
        seen[stay.name] = line()
        stays.append(stay)
    return stays, problems


def _columns(header: list[str]) -> Mapping[str, int]:
    """Where each column is. Raises ConfigError."""
    names = [name.strip() for name in header]
    if not any(names):
        raise ConfigError((f"line 1: empty: expected a header with the columns {','.join(COLUMNS)}",))
    problems = [f"line 1: no column {name} in the header" for name in COLUMNS if name not in names]
    problems += [f"line 1: column {name} is there twice" for name in COLUMNS if names.count(name) > 1]
    if problems:
        raise ConfigError(tuple(problems))
    return {name: names.index(name) for name in COLUMNS}


def _stay(row: list[str], places: Mapping[str, int]) -> Stay:
    """One row. Raises _CellError."""
    cells = {}
    for name, place in places.items():
        if place >= len(row):
            raise _CellError(name, f"missing: the row has {len(row)} column{'s' if len(row) != 1 else ''}")
        cells[name] = row[place].strip()
    if not cells["id"]:
        raise _CellError("id", "empty: expected a name")
    arrival = _seconds("arrival_s", cells["arrival_s"])
    departure = _seconds("departure_s", cells["departure_s"]) if cells["departure_s"] else None
    if departure is not None and departure < arrival:
        raise _CellError("departure_s", f"{cells['departure_s']} is before the arrival at {cells['arrival_s']}")
    memory = cells["memory_bytes"]
    return Stay(
        name=cells["id"],
        arrival_s=arrival,
        departure_s=departure,
        vcpus=_whole("vcpus", cells["vcpus"], 1, MOST_VCPUS),
        memory_bytes=_whole("memory_bytes", memory, 0, MOST_BYTES) if memory else None,
    )


def _seconds(column: str, text: str) -> float:
    if not _SECONDS.fullmatch(text) or float(text) > MOST_SECONDS:
        raise _CellError(column, f"{_short(text)}: expected a number of seconds from 0 to {MOST_SECONDS:.0f}")
    return float(text)


def _whole(column: str, text: str, least: int, most: int) -> int:
    if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
        raise _CellError(column, f"{_short(text)}: expected a whole number from {least} to {most}")
    return int(text)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
