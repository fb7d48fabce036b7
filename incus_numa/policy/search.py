"""The best set of a given width, by branch and bound. Used by `candidates` only.

Branches are sets in order of load. One is cut when nothing in it can fit, when a lower bound of its cost does not beat
the best set so far, or when it takes a node and leaves out an earlier one that is no different. All work is counted,
so the same question always has the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple, TypeVar

from incus_numa.policy.rooms import Rooms
from incus_numa.settings import PlacementSettings

SEARCH_LIMIT = 24_000
"""Work for one question, counted in branches looked at (more for one with many nodes); beyond it the best so far is
taken. A width may use half of what is left, but no less than LEAST_LIMIT."""

LEAST_LIMIT = 500

WORK_UNIT = 8
"""Nodes whose distances are summed in about the time that one branch takes otherwise."""

MOST_SEEDS = 24
"""First guesses grown around single nodes; more of them cost more than they save."""

ALMOST_ONE = 1 - 1e-9
"""One, less what rounding can lose."""

Number = TypeVar("Number", int, float)

Value = tuple[float, float, tuple[int, ...]]
"""Cost, mean load and ids: the order that sets are compared in. Rounded, so that sums in any order are equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What a set of nodes must hold: CPUs, the weight they commit, bytes of memory (0: memory does not matter)."""

    cpus: int
    weight: float
    memory_bytes: int = 0


class Have(NamedTuple):
    """Sums over a set of nodes."""

    cpus: int = 0
    room: int = 0
    worth: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Field:
    """The nodes to choose from, as parallel lists: least loaded first, then lowest id; memory-only nodes last."""

    ids: list[int]
    cpus: list[int]
    room: list[int]
    load: list[float]
    far: list[list[float]]
    rooms: Rooms
    need: Need
    settings: PlacementSettings

    def value(self, members: Sequence[int]) -> Value:
        """What a set, given by positions, is compared by."""
        return self.value_of(members, self._pairs(members))

    def value_of(self, members: Sequence[int], pairs: float) -> Value:
        """The same where the sum of the distances between its nodes is known."""
        loads = [self.load[index] for index in members if self.cpus[index]]
        cpus = sum(self.cpus[index] for index in members)
        count = len(members)
        total = self.settings.load_weight * (max(loads, default=0.0) + (self.need.weight / cpus if cpus else 0.0))
        if count > 1:
            total += self.settings.distance_weight * pairs / (count * (count - 1))
        mean = sum(loads) / len(loads) if loads else 0.0
        return round(total, 9), round(mean, 9), tuple(sorted(self.ids[index] for index in members))

    def fits(self, members: Sequence[int]) -> bool:
        """Whether CPUs and memory of a set are enough."""
        if sum(self.cpus[index] for index in members) < self.need.cpus:
            return False
        if sum(self.room[index] for index in members) < self.need.memory_bytes:
            return False
        return self.rooms.holds(sum(1 << self.ids[index] for index in members), self.need.memory_bytes)

    @cached_property
    def most_cpus(self) -> list[list[int]]:
        """By position and count: CPUs of the largest so many nodes from that position on."""
        return _largest_sums(self.cpus)

    @cached_property
    def most_room(self) -> list[list[int]]:
        """By position and count: memory of the roomiest so many nodes from that position on."""
        return _largest_sums(self.room)

    @cached_property
    def worth(self) -> list[float]:
        """What each node gives to the need, CPUs and memory taken together: a set that fits has 1 or more."""
        cpus = [cpus / max(1, self.need.cpus) for cpus in self.cpus]
        if not self.need.memory_bytes:
            return cpus
        room = [min(1.0, room / self.need.memory_bytes) for room in self.room]
        return [(one + other) / 2 for one, other in zip(cpus, room, strict=True)]

    @cached_property
    def most_worth(self) -> list[list[float]]:
        """By position and count: the worth of the most useful so many nodes from that position on."""
        return _largest_sums(self.worth)

    def may_fit(self, start: int, count: int, have: Have) -> bool:
        """Whether what is had and some `count` nodes from the start on may be enough; False is certain."""
        need = self.need
        return (
            have.cpus + self.most_cpus[start][count] >= need.cpus
            and have.room + self.most_room[start][count] >= need.memory_bytes
            and have.worth + self.most_worth[start][count] >= ALMOST_ONE
        )

    @cached_property
    def nearest(self) -> list[list[float]]:
        """By position and count: the sum of distances to the so many nearest other nodes."""
        return [[0.0, *accumulate(sorted(row[:index] + row[index + 1 :]))] for index, row in enumerate(self.far)]

    @cached_property
    def twin(self) -> list[int | None]:
        """For each position the last earlier one that is no different in anything but its id, None if there is none."""
        twins: list[int | None] = []
        latest: dict[tuple[float, int, int, tuple[float, ...]], list[int]] = {}
        for index, row in enumerate(self.far):
            shape = (round(self.load[index], 9), self.cpus[index], self.room[index], tuple(sorted(row)))
            group = latest.setdefault(shape, [])
            found = next((place for place in group if self._same_distances(place, index)), None)
            if self.need.memory_bytes and self.rooms.has_wide:
                found = None
            if found is not None:
                group.remove(found)
            group.append(index)
            twins.append(found)
        return twins

    def _same_distances(self, a: int, b: int) -> bool:
        one, two = self.far[a], self.far[b]
        return one[:a] == two[:a] and one[a + 1 : b] == two[a + 1 : b] and one[b + 1 :] == two[b + 1 :]

    def _pairs(self, members: Sequence[int]) -> float:
        if len(members) < 2:
            return 0.0
        pick = itemgetter(*members)
        return sum(sum(pick(self.far[index])) for index in members) / 2


@dataclass(kw_only=True, slots=True)
class Search:
    """One width's search and its best so far."""

    arena: Field
    width: int
    limit: int
    best: Value | None = None
    work: int = 0
    chosen: list[int] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)

    def run(self) -> Value | None:
        """The best set of this width, None when none fits or none was found within the limit."""
        arena = self.arena
        if self.width == 1:
            for index in range(len(arena.ids)):
                self._consider([index], arena.value([index]))
            return self.best
        for seed in self._seeds():
            self._consider(seed, arena.value(seed))
        self._descend(start=0, pairs=0.0, cross=[0.0] * len(arena.ids), have=Have())
        return self.best

    def _consider(self, members: Sequence[int], value: Value) -> None:
        if self.best is not None and value >= self.best:
            return
        self.work += WORK_UNIT if self.arena.rooms.has_wide else 0
        if self.arena.fits(members):
            self.best = value

    def _seeds(self) -> list[list[int]]:
        """Good first guesses: the roomiest sets, which fit if any does, and a set grown around some of the nodes."""
        arena, need = self.arena, self.arena.need
        everything = range(len(arena.ids))
        seeds = []
        for part in (0.0, 0.25, 0.5, 0.75, 1.0) if need.memory_bytes else (1.0,):
            worth = [
                -part * cpus / max(1, need.cpus) - (1 - part) * min(1.0, room / max(1, need.memory_bytes))
                for cpus, room in zip(arena.cpus, arena.room, strict=True)
            ]
            seeds.append(sorted(everything, key=worth.__getitem__)[: self.width])
        by_load, by_distance = arena.settings.load_weight, arena.settings.distance_weight / 2
        firsts = [index for index in everything if arena.twin[index] is None][:MOST_SEEDS]
        for first in firsts:
            row = arena.far[first]
            merit = [by_load * load + by_distance * far for load, far in zip(arena.load, row, strict=True)]
            merit[first] = -1.0
            seeds.append(sorted(everything, key=merit.__getitem__)[: self.width])
        return seeds

    def _descend(self, *, start: int, pairs: float, cross: list[float], have: Have) -> None:
        """Depth-first. `cross` is each node's distance to all chosen ones; the other sums are of the chosen."""
        arena = self.arena
        rest = self.width - len(self.chosen) - 1
        for index in range(start, len(arena.ids) - rest):
            self.work += 1
            if self.work > self.limit:
                return
            if self._rest_is_worse(index, rest, have.cpus):
                return
            by_load = self._load_bound(index, rest, have.cpus)
            twin, added = arena.twin[index], pairs + cross[index]
            if (twin is not None and twin not in self.taken) or self._beaten(index, rest, by_load, added):
                continue
            having = Have(have[0] + arena.cpus[index], have[1] + arena.room[index], have[2] + arena.worth[index])
            if arena.may_fit(index + 1, rest, having):
                self.chosen.append(index)
                self._go_on(index, rest, by_load, added, cross, having)
                self.chosen.pop()

    def _go_on(self, index: int, rest: int, by_load: float, pairs: float, cross: list[float], have: Have) -> None:
        """Judge the set if it is complete, else look at what can be added to it."""
        if not rest:
            self._consider(self.chosen, self.arena.value_of(self.chosen, pairs))
            return
        after = [far + more for far, more in zip(cross, self.arena.far[index], strict=True)]
        if not self._beaten(index, rest, by_load, pairs + self._least_pairs(index + 1, rest, after)):
            self.taken.add(index)
            self._descend(start=index + 1, pairs=pairs, cross=after, have=have)
            self.taken.discard(index)

    def _rest_is_worse(self, index: int, rest: int, cpus: int) -> bool:
        """Whether the load alone makes this node and all later ones too dear. Never so with memory-only nodes."""
        arena = self.arena
        if self.best is None or not arena.cpus[-1]:
            return False
        least = arena.load[index + rest] + arena.need.weight / max(1, cpus + arena.most_cpus[index][rest + 1])
        return round(arena.settings.load_weight * least, 9) > self.best[0]

    def _load_bound(self, index: int, rest: int, cpus: int) -> float:
        """The least that the load part of the cost can be with this node as the next one."""
        arena = self.arena
        last = index + rest
        cpus += arena.cpus[index]
        # Memory-only nodes come last and add no load; then only the node itself is sure to be counted.
        worst = arena.load[last] if arena.cpus[last] else arena.load[index]
        enough = cpus + arena.most_cpus[index + 1][rest]
        return arena.settings.load_weight * (worst + arena.need.weight / max(1, enough))

    def _least_pairs(self, start: int, rest: int, cross: Sequence[float]) -> float:
        """The least distance that the missing nodes add: to the chosen ones, and half of each one's to the others."""
        self.work += len(cross) // WORK_UNIT
        nearest = self.arena.nearest
        least = [cross[index] + nearest[index][rest - 1] / 2 for index in range(start, len(cross))]
        if rest < len(least):
            least.sort()
        return sum(least[:rest])

    def _beaten(self, index: int, rest: int, by_load: float, pairs: float) -> bool:
        """Whether no set with the chosen nodes, this one and `rest` later ones can come before the best so far."""
        if self.best is None:
            return False
        arena = self.arena
        far = arena.settings.distance_weight * pairs / (self.width * (self.width - 1))
        bound: float = round(by_load + far, 9)
        if bound != self.best[0]:
            return bound > self.best[0]
        if not arena.cpus[-1]:
            return False
        chosen = self.chosen if self.chosen and self.chosen[-1] == index else [*self.chosen, index]
        mean: float = round(
            sum(arena.load[one] for one in (*chosen, *range(index + 1, index + 1 + rest))) / self.width, 9
        )
        if mean != self.best[1]:
            return mean > self.best[1]
        lowest = [*(arena.ids[one] for one in chosen), *sorted(arena.ids[index + 1 :])[:rest]]
        return tuple(sorted(lowest)) >= self.best[2]


def _largest_sums(sizes: Sequence[Number]) -> list[list[Number]]:
    """By start and count: the sum of the so many largest sizes from the start on."""
    none = sizes[0] - sizes[0]
    return [list(accumulate(sorted(sizes[start:], reverse=True), initial=none)) for start in range(len(sizes) + 1)]
