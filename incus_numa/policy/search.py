"""The best set of a given width, by branch and bound. Used by `candidates` only.

Branches are sets in order of load. One is cut when nothing in it can fit, when a lower bound of its cost does not beat
the best set so far, or when it takes a node and leaves out an earlier one that is no different. All work is counted,
so the same question always has the same answer. Where the work is cut off, the least that any set not looked at can
cost is kept: no set of this width costs less than that or than the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from incus_numa.policy.field import Field, Have, Value
from incus_numa.policy.scoring import CROWDED

LEAST_LIMIT = 500

WORK_UNIT = 8
"""Nodes whose distances are summed in about the time that one branch takes otherwise."""

ROUNDING = 1e-9

FLOW_WORK = 40
"""Steps of a flow of memory that take about the time that one branch takes otherwise."""

NARROW = 3
"""Sets of so many nodes are searched for without first guesses."""

MOST_SEEDS = 24
"""First guesses grown around single nodes; more of them cost more than they save."""


@dataclass(kw_only=True, slots=True)
class Search:
    """One width's search, of two nodes or more, and its best so far.

    `bound` is None while every set of the width has been looked at or cut with reason; else no set that was not
    looked at costs less.
    """

    arena: Field
    width: int
    limit: int
    best: Value | None = None
    bound: float | None = None
    work: int = 0
    scarce: bool = False
    least_far: float = 0.0
    chosen: list[int] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)

    def run(self) -> Value | None:
        """The best set of this width, None when none fits or none was found within the limit."""
        arena = self.arena
        self.scarce = arena.is_scarce(self.width)
        pairs = arena.least_pairs[self.width]
        self.least_far = arena.settings.distance_weight * pairs / (self.width * (self.width - 1))
        if self.width > NARROW or self.scarce or arena.need.must or arena.need.hugepages:
            # Else the first branches are as good, for less work.
            for seed in self._seeds():
                self._consider(seed, arena.value(seed))
        self._descend(start=0, pairs=0.0, cross=[0.0] * len(arena.ids), have=Have())
        return self.best

    def _consider(self, members: Sequence[int], value: Value) -> None:
        if self.best is not None and value >= self.best:
            return
        steps = self.arena.rooms.steps
        if self.arena.fits(members):
            self.best = value
        self.work += (self.arena.rooms.steps - steps) // FLOW_WORK

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
        forced = arena.forced
        firsts = [index for index in everything if arena.twin[index] is None][: min(MOST_SEEDS, 2 * self.width)]
        for first in firsts:
            row = arena.far[first]
            merit = [
                by_load * load + by_distance * far + pull
                for load, far, pull in zip(arena.load, row, arena.pull, strict=True)
            ]
            merit[first] = -1.0
            for index in forced:
                merit[index] = -2.0
            seeds.append(sorted(everything, key=merit.__getitem__)[: self.width])
        return seeds

    def _descend(self, *, start: int, pairs: float, cross: list[float], have: Have) -> None:
        """Depth-first. `cross` is each node's distance to all chosen ones; the other sums are of the chosen."""
        arena = self.arena
        rest = self.width - len(self.chosen) - 1
        if rest == 1 and not (self.scarce or arena.need.hugepages):
            self._last_two(start, pairs, cross, have)
            return
        for index in range(start, len(arena.ids) - rest):
            self.work += 1
            most = have.cpus + arena.most_cpus[index][rest + 1]
            if most < arena.need.cpus or self._rest_is_worse(index, rest, most):
                return
            if self.work > self.limit:
                self._leave_open(index, rest, pairs, have)
                return
            twin, added = arena.twin[index], pairs + cross[index]
            if twin is None or twin in self.taken:
                having = self._added(have, index)
                by_load = self._load_bound(index, rest, having.cpus) + self._pull_bound(index + 1, rest, having.pull)
                if self._may_fit(index, rest, having) and not self._beaten(index, rest, by_load, added):
                    self.chosen.append(index)
                    self._go_on(index, rest, by_load, added, cross, having)
                    self.chosen.pop()
            if index in arena.forced:
                return

    def _last_two(self, start: int, pairs: float, cross: Sequence[float], have: Have) -> None:
        """The same for the last node but one, where memory cuts nothing, with less said about each node."""
        arena, twins, load, taken = self.arena, self.arena.twin, self.arena.load, self.taken
        by_distance = arena.settings.distance_weight / (self.width * (self.width - 1))
        least_more = arena.need.weight / max(1, have.cpus + arena.most_cpus[start][2])
        for index in range(start, len(load) - 1):
            self.work += 1
            least, fullest = self._ceiling()
            if load[index + 1] + least_more > fullest:
                return
            if self.work > self.limit:
                self._leave_open(index, 1, pairs, have)
                return
            twin, added = twins[index], pairs + cross[index]
            near_enough = by_distance * added <= least
            if near_enough and (twin is None or twin in taken):
                after = [far + more for far, more in zip(cross, arena.far[index], strict=True)]
                self.chosen.append(index)
                taken.add(index)
                self._complete(index + 1, added, after, self._added(have, index))
                taken.discard(index)
                self.chosen.pop()
            if index in arena.forced:
                return

    def _added(self, have: Have, index: int) -> Have:
        arena = self.arena
        if not self.scarce:
            return Have(have[0] + arena.cpus[index], 0, 0.0, have[3] + arena.pull[index])
        return Have(
            have[0] + arena.cpus[index],
            have[1] + arena.room[index],
            have[2] + arena.worth[index],
            have[3] + arena.pull[index],
        )

    def _may_fit(self, index: int, rest: int, have: Have) -> bool:
        """Whether what is had with this node and some `rest` later ones may be enough; False is certain."""
        arena = self.arena
        if have.cpus + arena.most_cpus[index + 1][rest] < arena.need.cpus:
            return False
        if self.scarce and not arena.may_fit(index + 1, rest, have):
            return False
        return not arena.need.hugepages or arena.may_hold_huge(index + 1, rest, [*self.chosen, index])

    def _go_on(self, index: int, rest: int, by_load: float, pairs: float, cross: list[float], have: Have) -> None:
        """Look at what can be added to the chosen nodes, of which `rest` are missing."""
        after = [far + more for far, more in zip(cross, self.arena.far[index], strict=True)]
        if rest == 1:
            self.taken.add(index)
            self._complete(index + 1, pairs, after, have)
            self.taken.discard(index)
        elif not self._beaten(index, rest, by_load, pairs + self._least_pairs(index + 1, rest, after)):
            self.taken.add(index)
            self._descend(start=index + 1, pairs=pairs, cross=after, have=have)
            self.taken.discard(index)

    def _complete(self, start: int, pairs: float, cross: Sequence[float], have: Have) -> None:
        """Judge the sets that one more node completes. Most work is here, so nothing is called for most nodes."""
        arena, weight, taken = self.arena, self.arena.need.weight, self.taken
        load, cpus, twins, pulls, forced = arena.load, arena.cpus, arena.twin, arena.pull, arena.forced
        had, needed, largest = have.cpus, arena.need.cpus - have.cpus, arena.most_cpus[start][1]
        by_load, full = arena.settings.load_weight, arena.full
        by_distance = arena.settings.distance_weight / (self.width * (self.width - 1))
        highest = max((load[one] for one in self.chosen if cpus[one]), default=0.0)
        # Later nodes are fuller, so the first one that is too full ends it. Never so with memory-only nodes.
        least_more = weight / max(1, had + largest)
        least, fullest = self._ceiling()
        for index in range(start, len(cpus)):
            self.work += 1
            if load[index] + least_more > fullest:
                return
            if self.work > self.limit:
                self._leave_open(index, 0, pairs, have)
                return
            count, twin = cpus[index], twins[index]
            if count >= needed and (twin is None or twin in taken):
                after = (load[index] if count else highest) + weight / max(1, had + count)
                value = by_load * (after if after <= full else CROWDED * after - (CROWDED - 1) * full)
                value += by_distance * (pairs + cross[index]) + (have.pull + pulls[index]) / self.width
                if value <= least:
                    members = [*self.chosen, index]
                    self._consider(members, arena.value_of(members, pairs + cross[index]))
                    least, fullest = self._ceiling()
            if index in forced:
                return

    def _ceiling(self) -> tuple[float, float]:
        """The cost that a set must not exceed to come before the best, and the load that makes it that dear alone."""
        if self.best is None:
            return inf, inf
        least, arena = self.best[0] + ROUNDING, self.arena
        if not arena.cpus[-1] or not arena.settings.load_weight:
            return least, inf
        load = (least - self.least_far) / arena.settings.load_weight
        return least, load if load <= arena.full else (load + (CROWDED - 1) * arena.full) / CROWDED

    def _rest_is_worse(self, index: int, rest: int, most: int) -> bool:
        """Whether the load alone makes this node and all later ones too dear. Never so with memory-only nodes.

        `most` is how many CPUs such a set has at most.
        """
        arena = self.arena
        if self.best is None or not arena.cpus[-1]:
            return False
        least = arena.load[index + rest] + arena.need.weight / max(1, most)
        return round(arena.price(least) + self.least_far, 9) > self.best[0]

    def _leave_open(self, index: int, rest: int, pairs: float, have: Have) -> None:
        """Note the least that sets with the chosen nodes and only this one and later ones can cost: none is tried."""
        arena = self.arena
        cpus = have.cpus + arena.most_cpus[index][rest + 1]
        worst = arena.load[index + rest] if arena.cpus[-1] else 0.0
        least = arena.price(worst + arena.need.weight / max(1, cpus)) + self._pull_bound(index, rest + 1, have.pull)
        far = arena.settings.distance_weight * pairs / (self.width * (self.width - 1))
        least = round(least + max(far, self.least_far), 9)
        self.bound = least if self.bound is None else min(self.bound, least)

    def _pull_bound(self, start: int, rest: int, pull: float) -> float:
        """The least that ties can add with what the chosen nodes add already."""
        if not self.arena.need.pull:
            return 0.0
        return (pull + self.arena.least_pull[start][rest]) / self.width

    def _load_bound(self, index: int, rest: int, cpus: int) -> float:
        """The least that the load part of the cost can be with this node, whose CPUs are counted, as the next one."""
        arena = self.arena
        last = index + rest
        # Memory-only nodes come last and add no load; then only the node itself is sure to be counted.
        worst = arena.load[last] if arena.cpus[last] else arena.load[index]
        enough = cpus + arena.most_cpus[index + 1][rest]
        return arena.price(worst + arena.need.weight / max(1, enough))

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
        bound: float = round(by_load + max(far, self.least_far), 9)
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
