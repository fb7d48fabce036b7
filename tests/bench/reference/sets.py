"""The narrowest width, the least load and the least distance that one more instance can get, others staying put.

Up to EXHAUSTIVE nodes every set is looked at; above, all sets of the width while these are few enough. Where they are
too many, load is judged by the largest nodes among the least loaded, which is exact but for memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import comb, inf
from typing import TypeAlias

import numpy as np

from tests.bench.reference.ground import Ground
from tests.bench.reference.room import EXHAUSTIVE, Room, sums

SETS_LIMIT = 200_000
"""Sets of one width that are looked at one by one."""

Numbers: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"
Sets: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.int64]]"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One more instance on a machine: loads by position, room for its memory, and what it asks."""

    ground: Ground
    loads: list[float]
    room: Room
    cpus: int
    weight: float
    memory: int

    def width(self) -> int | None:
        """The narrowest width: exact up to EXHAUSTIVE nodes, 0 if nothing holds it, None where unknown."""
        ground = self.ground
        if len(ground.ids) <= EXHAUSTIVE:
            fits = (sums(ground.cpus) >= self.cpus) & (self.room.by_set >= self.memory)
            counts = sums([1] * len(ground.ids))
            return int(counts[fits].min()) if fits.any() else 0
        least = _most_first(ground.cpus, self.cpus)
        return least if not self.memory else None

    def least_by_load(self, width: int) -> float:
        """The least highest load of so many nodes, whatever their memory.

        Each node's load is tried as the highest one: of the nodes that are loaded no more, the largest are best.
        """
        order = sorted((load, -cpus) for load, cpus in zip(self.loads, self.ground.cpus, strict=True) if cpus)
        best = inf
        for count in range(width, len(order) + 1):
            cpus = -sum(sorted(size for _, size in order[:count])[:width])
            if cpus >= self.cpus:
                best = min(best, order[count - 1][0] + self.weight / cpus)
        return best

    def table(self, width: int) -> Table | None:
        """All sets of a width that have the CPUs; None where there are too many."""
        if comb(len(self.ground.ids), width) > SETS_LIMIT:
            return None
        members = all_sets(len(self.ground.ids), width)
        cpus = np.array(self.ground.cpus)[members].sum(axis=1)
        enough = cpus >= self.cpus
        members, cpus = members[enough], cpus[enough]
        loads = np.array([load if cpu else 0.0 for load, cpu in zip(self.loads, self.ground.cpus, strict=True)])
        return Table(members=members, load=loads[members].max(axis=1) + self.weight / cpus)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Sets, a row of positions each, and the highest load of their nodes with the instance."""

    members: Sets
    load: Numbers

    def mask(self, row: int) -> int:
        """A row's set."""
        return sum(1 << int(index) for index in self.members[row])


def load_on(question: Question, mask: int) -> float:
    """The highest load of a set's nodes with the instance on it."""
    ground = question.ground
    inside = [question.loads[index] for index in range(len(ground.ids)) if mask >> index & 1 and ground.cpus[index]]
    return max(inside) + question.weight / ground.cpus_of(mask)


def least_load(question: Question, width: int) -> tuple[float, bool]:
    """The least highest load of a set of that width with the instance on it, and whether it is exact; `inf`: none."""
    table = question.table(width)
    if table is None:
        return question.least_by_load(width), not question.memory
    for row in np.argsort(table.load, kind="stable"):
        if question.room.holds(table.mask(int(row)), question.memory):
            return float(table.load[row]), True
    return inf, True


def least_distance(question: Question, width: int, load: float) -> float | None:
    """The least mean distance of the sets of that width with no higher load; None where there are too many sets."""
    table = question.table(width)
    if table is None:
        return None
    members = table.members[table.load <= load + 1e-9]
    far = np.array(question.ground.far)
    total = np.zeros(len(members))
    for a, b in combinations(range(width), 2):
        total += far[members[:, a], members[:, b]]
    for row in np.argsort(total, kind="stable"):
        if question.room.holds(sum(1 << int(index) for index in members[row]), question.memory):
            return float(total[row]) / comb(width, 2)
    return inf


def _most_first(cpus: tuple[int, ...], wanted: int) -> int:
    total = 0
    for count, more in enumerate(sorted(cpus, reverse=True), start=1):
        total += more
        if total >= wanted:
            return count
    return 0


@cache
def all_sets(count: int, width: int) -> Sets:
    """All sets of a width, a row of positions each."""
    found: Sets = np.array(list(combinations(range(count), width)), dtype=np.int64).reshape(-1, width)
    return found
