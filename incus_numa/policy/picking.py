"""Which CPUs of one node: the rules of `smt` and of L3 caches, by load. Called by `policy.cpus`.

Loads are compared as whole billionths of a CPU, so that sums made in another order are still equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from incus_numa.model.machine import Core
from incus_numa.policy.rooms import bits

UNIT = 1_000_000_000
"""What a load of one CPU counts as."""

LEAST_PART = 1_000
"""Load that a CPU is counted with at least, so that an instance without weight is spread, too."""

Thread = tuple[int, bool, int]
"""Load of a CPU, whether the instance has another one, and the CPU: the order of the threads of a core."""

Row = tuple[int, int, int]
"""Load of a core, its place among the cores of the node, and the mask of its threads that may be picked."""

Rows = Sequence[Row]

Unit = tuple[int, int, int, int, int | None, tuple[int, ...]]
"""CPUs of one core that are equally good as those of other units with the same first number: that number, a load that
orders units of one L3, how many the instance has (negative), the first CPU, the L3, and the CPUs in order."""


def units(load: float) -> int:
    """A load as it is compared."""
    return int(load * UNIT + 0.5)


class Picker:
    """The cores of one node, the load of their CPUs, and of the instance its load per CPU and the CPUs it has."""

    __slots__ = ("_cores", "_has", "_loads", "_part", "_several")

    def __init__(
        self, cores: Sequence[Core], loads: Mapping[int, float], *, caches: int, part: float, has: int
    ) -> None:
        self._cores = cores
        self._loads = loads
        self._several = caches > 1
        self._part = max(units(part), LEAST_PART)
        self._has = has

    def spread(self, allowed: int, share: int) -> int:
        """So many of the allowed CPUs, which are no fewer: least loaded cores first, whole cores before siblings."""
        rows = self._rows(allowed)
        return self._best(rows, share, self._spread, self._spread_cost) if self._several else self._spread(rows, share)

    def pack(self, allowed: int, share: int) -> int:
        """So many of the allowed CPUs, which are no fewer: least loaded CPUs first, and of those whole cores."""
        rows = self._rows(allowed)
        return self._best(rows, share, self._pack, self._pack_cost) if self._several else self._pack(rows, share)

    def _best(
        self, rows: list[Row], share: int, pick: Callable[[Rows, int], int], cost: Callable[[Rows, int], int]
    ) -> int:
        """CPUs of one L3 if they are as good as any of the node, else the best CPUs."""
        groups: dict[int | None, list[Row]] = {}
        for row in rows:
            groups.setdefault(self._cores[row[1]].l3, []).append(row)
        least = cost(rows, share)
        masks = {pick(rows, share)}
        allowed = sum([own for _, _, own in rows])
        if (self._has & allowed).bit_count() == share and cost(self._of(rows, self._has), share) == least:
            masks.add(self._has & allowed)
        for group in groups.values() if len(groups) > 1 else ():
            if sum([own.bit_count() for _, _, own in group]) >= share and cost(group, share) == least:
                masks.add(pick(group, share))
        if len(masks) == 1:
            return masks.pop()
        caches = [sum([own for _, _, own in group]) for group in groups.values()]

        def quality(mask: int) -> tuple[int, int, int, int, tuple[int, ...]]:
            return (
                sum([units(self._loads[cpu]) for cpu in bits(mask)]),
                sum([1 for cache in caches if cache & mask]),
                sum([1 for _, _, own in rows if own & mask and own & ~mask]) if pick == self._pack else 0,
                -(mask & self._has).bit_count(),
                tuple(bits(mask)),
            )

        return min(masks, key=quality)

    def _of(self, rows: Rows, mask: int) -> list[Row]:
        return [(load, place, own & mask) for load, place, own in rows if own & mask]

    def _spread(self, rows: Rows, share: int) -> int:
        """CPUs as a mask.

        A CPU costs the load of its core, with what the instance has already picked there; the cheapest are taken.
        Of the threads of a core that cost the same as those of others, one at most is left to choose about.
        """
        limit, part = self._limit(rows, share), self._part
        mask = 0
        edge: list[Unit] = []
        for load, place, own in rows:
            if load > limit:
                break
            below = (limit - load + part - 1) // part
            if below >= own.bit_count():
                mask |= own
                continue
            core = self._cores[place]
            order = self._order(core, own)
            for _, _, cpu in order[:below] if below else ():
                mask |= 1 << cpu
            if load + below * part == limit:
                busy, new, cpu = order[below]
                edge.append((below, busy, -1 + new, cpu, core.l3, (cpu,)))
        return mask | self._fill(edge, share - mask.bit_count(), mask, rows)

    def _limit(self, rows: Rows, share: int) -> int:
        """What the most expensive of the CPUs to pick costs."""
        if share <= len(rows) and rows[share - 1][0] < rows[0][0] + self._part:
            return rows[share - 1][0]
        return self._spread_costs(rows)[share - 1]

    def _spread_costs(self, rows: Rows) -> list[int]:
        part = self._part
        return sorted([load + part * mine for load, _, own in rows for mine in range(own.bit_count())])

    def _spread_cost(self, rows: Rows, share: int) -> int:
        return sum(self._spread_costs(rows)[:share])

    def _pack(self, rows: Rows, share: int) -> int:
        """CPUs as a mask: the least loaded ones, and where they are equal, cores in use are filled before idle ones."""
        order = [(load, self._cores[place], self._order(self._cores[place], own)) for load, place, own in rows]
        limit = sorted([load for _, _, threads in order for load, _, _ in threads])[share - 1]
        mask = 0
        edge: list[Unit] = []
        for whole, core, threads in order:
            below = 0
            if threads[0][0] < limit:
                below = sum([1 << cpu for load, _, cpu in threads if load < limit])
                mask |= below
            equal = [cpu for load, _, cpu in threads if load == limit]
            if equal:
                kept = sum([self._has >> cpu & 1 for cpu in equal])
                edge.append((-below.bit_count(), -whole, -kept, equal[0], core.l3, tuple(equal)))
        return mask | self._fill(edge, share - mask.bit_count(), mask, rows)

    def _pack_cost(self, rows: Rows, share: int) -> int:
        return sum(sorted([units(self._loads[cpu]) for _, _, own in rows for cpu in bits(own)])[:share])

    def _rows(self, allowed: int) -> list[Row]:
        """Cores with allowed CPUs, the least loaded first. Threads that are not allowed are load of their core, too."""
        rows: list[Row] = []
        loads = self._loads
        for place, core in enumerate(self._cores):
            own = core.mask & allowed
            if own:
                load = 0.0
                for cpu in core.threads:
                    load += loads[cpu]
                rows.append((int(load * UNIT + 0.5), place, own))
        rows.sort()
        return rows

    def _order(self, core: Core, own: int) -> list[Thread]:
        loads, has = self._loads, self._has
        threads = core.threads if own == core.mask else bits(own)
        order = [(int(loads[cpu] * UNIT + 0.5), not has >> cpu & 1, cpu) for cpu in threads]
        order.sort()
        return order

    def _fill(self, edge: list[Unit], need: int, mask: int, rows: Rows) -> int:
        """So many CPUs of the units, in order; where not all with the same first number fit, one L3 after the other."""
        edge.sort()
        if not self._several or sum([len(unit[5]) for unit in edge]) == need:
            return _take(edge, need)
        taken = 0
        for _, alike in groupby(edge, key=lambda unit: unit[0]):
            missing = need - taken.bit_count()
            if not missing:
                break
            group = list(alike)
            if sum(len(unit[5]) for unit in group) <= missing:
                taken |= _take(group, missing)
            else:
                taken |= self._fill_caches(group, missing, mask | taken, rows)
        return taken

    def _fill_caches(self, alike: list[Unit], need: int, mask: int, rows: Rows) -> int:
        """So many CPUs of the units: L3 caches that it uses are filled first, then those that have the most."""
        used, room = dict[int | None, int](), dict[int | None, int]()
        for _, place, own in rows:
            l3 = self._cores[place].l3
            used[l3] = used.get(l3, 0) + (own & mask).bit_count()
            room[l3] = room.get(l3, 0) + own.bit_count()
        groups: dict[int | None, list[Unit]] = {}
        for unit in alike:
            groups.setdefault(unit[4], []).append(unit)

        def merit(l3: int | None) -> tuple[bool, int, int, int, int, int, int]:
            first = groups[l3][:need]
            busy, kept = sum([unit[1] for unit in first]), sum([unit[2] for unit in first])
            size = min(need, sum([len(unit[5]) for unit in first]))
            return not used[l3], first[0][1], -size, busy, kept, -room[l3], first[0][3]

        return _take([unit for l3 in sorted(groups, key=merit) for unit in groups[l3]], need)


def _take(ordered: Sequence[Unit], need: int) -> int:
    """So many CPUs of the units, or all if they have fewer: units that need not be split before one that must be."""
    sizes = [len(unit[5]) for unit in ordered]
    if max(sizes, default=1) == 1:
        return sum([1 << unit[3] for unit in ordered[:need]])
    chosen = [ordered[place] for place in fitting(sizes, min(need, sum(sizes)))]
    mask = sum([1 << cpu for unit in chosen for cpu in unit[5]])
    if mask.bit_count() > need:
        split = max(chosen, key=lambda unit: (len(unit[5]) + unit[2], unit[3]))
        mask &= ~sum([1 << cpu for cpu in split[5][need - mask.bit_count() :]])
    return mask


def fitting(sizes: Sequence[int], total: int) -> list[int]:
    """Places of the first sizes, in order, that together are exactly the total, or as little more as possible.

    The sizes together must not be less. One of those chosen is larger than what is too much.
    """
    reachable = [1]
    for size in reversed(sizes):
        reachable.append(reachable[-1] | reachable[-1] << size)
    beyond = reachable[-1] >> total
    left = total + (beyond & -beyond).bit_length() - 1
    chosen: list[int] = []
    for place, size in enumerate(sizes):
        if left >= size and reachable[len(sizes) - place - 1] >> left - size & 1:
            chosen.append(place)
            left -= size
    return chosen
