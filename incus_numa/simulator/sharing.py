"""Who gets how much CPU time when running instances want more than there is (pure). Called by `work`.

The kernel's fair scheduler, without its latencies and errors: shares are max-min fair over instances, and no CPU idles
while somebody who may run there wants more. The amounts are those of the decomposition of a polymatroid (S. Fujishige,
"Lexicographically optimal base of a polymatroid", 1980): with everybody at one common level, a maximum flow either
serves all or shows which instances want more than their CPUs have; these with their CPUs, and the others with the rest,
are two smaller problems.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Self

from incus_numa.cpuset import CpuSet
from incus_numa.model.instance import InstanceKey

UNIT = 10**9
"""What one CPU has, as an integer, so that flows are exact: nanoseconds of each second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What one instance wants, in CPUs, and where it may run."""

    cpus: CpuSet
    wanted_cpus: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """What each instance gets, in CPUs, and the part of each CPU that is busy (0 to 1; idle ones may be missing)."""

    by_instance: Mapping[InstanceKey, float]
    by_cpu: Mapping[int, float]


def share_time(claims: Mapping[InstanceKey, Claim]) -> Shares:
    """Max-min fair shares: nobody gets more than it wants, no CPU gives more than it has, none is left without need.

    An instance spreads over its least busy CPUs. Claims without CPUs get nothing.
    """
    keys = tuple(claims)
    wants = [min(len(claim.cpus), round(claim.wanted_cpus * UNIT) / UNIT) * UNIT for claim in claims.values()]
    field = _Field.lay([claim.cpus for claim in claims.values()], [int(want) for want in wants])
    loads = dict.fromkeys(range(len(field.pools)), 0)
    given = dict.fromkeys(range(len(keys)), 0)
    for people, pools in _share_out(field):
        for one, flows in people.items():
            given[one] = sum(flows.values())
        for pool in pools:
            loads[pool] = sum(flows.get(pool, 0) for flows in people.values())
    return Shares(
        by_instance={key: given[one] / UNIT for one, key in enumerate(keys)},
        by_cpu={cpu: loads[pool] / (len(cpus) * UNIT) for pool, cpus in enumerate(field.pools) for cpu in cpus},
    )


def waiting(claim: Claim, got: float) -> tuple[float, float]:
    """Parts of the time in which some, and in which all, of an instance's tasks wait for a CPU, as PSI counts them.

    The instance is as many single-threaded tasks as it wants CPUs; one that wants less than a CPU sleeps in between,
    and all get the same. A CPU with two of them always has one that waits. Values of CPUs are averaged over those that
    have tasks: kernel/sched/psi.c, "Multiple CPUs". So `some` is 1 - got / wanted up to one task per CPU.
    """
    wanted, size = claim.wanted_cpus, len(claim.cpus)
    full = max(0.0, 1 - got / min(wanted, size))
    # Where there are more tasks than CPUs, so many of the CPUs still have one alone.
    alone = min(1.0, max(0.0, 2 * size - wanted) / size)
    return min(1.0, 1 - alone * (1 - full)), full


@dataclass(frozen=True, kw_only=True, slots=True)
class _Field:
    """Who may run where. CPUs that the same instances may use are one pool; both are known by their index."""

    pools: tuple[tuple[int, ...], ...]
    members: tuple[tuple[int, ...], ...]
    reach: tuple[tuple[int, ...], ...]
    wants: tuple[int, ...]

    @classmethod
    def lay(cls, cpusets: list[CpuSet], wants: list[int]) -> Self:
        claimants: dict[int, int] = {}
        for one, cpus in enumerate(cpusets):
            if wants[one] > 0:
                for cpu in cpus:
                    claimants[cpu] = claimants.get(cpu, 0) | 1 << one
        pools: dict[int, list[int]] = {}
        for cpu, mask in claimants.items():
            pools.setdefault(mask, []).append(cpu)
        members = tuple(tuple(CpuSet.from_mask(mask)) for mask in pools)
        reach: list[list[int]] = [[] for _ in cpusets]
        for pool, people in enumerate(members):
            for one in people:
                reach[one].append(pool)
        return cls(
            pools=tuple(tuple(cpus) for cpus in pools.values()),
            members=members,
            reach=tuple(tuple(own) for own in reach),
            wants=tuple(wants),
        )

    def capacity(self, pools: Collection[int]) -> int:
        return sum(len(self.pools[pool]) for pool in pools) * UNIT


_Flows = dict[int, dict[int, int]]
"""What each instance gets of each pool."""


def _share_out(field: _Field) -> list[tuple[_Flows, frozenset[int]]]:
    """The solved parts, which cover all pools and all instances that want something and share neither."""
    solved: list[tuple[_Flows, frozenset[int]]] = []
    open_parts = _components(field, {one for one, want in enumerate(field.wants) if want > 0 and field.reach[one]})
    while open_parts:
        people, pools = open_parts.pop()
        level = _common_level([field.wants[one] for one in people], field.capacity(pools))
        network = _Network(field, {one: min(field.wants[one], level) for one in people}, pools)
        tight = network.route()
        if not tight:
            solved.append((network.flows, pools))
            continue
        tight_pools = frozenset(pool for one in tight for pool in field.reach[one]) & pools
        open_parts += [(tight, tight_pools), (people - tight, pools - tight_pools)]
    return solved


def _components(field: _Field, people: set[int]) -> list[tuple[frozenset[int], frozenset[int]]]:
    """Instances and pools that have to do with each other, directly or not."""
    left = set(people)
    found = []
    while left:
        waiting, seen, pools = [left.pop()], set[int](), set[int]()
        while waiting:
            one = waiting.pop()
            seen.add(one)
            for pool in field.reach[one]:
                if pool not in pools:
                    pools.add(pool)
                    waiting += left & set(field.members[pool])
                    left -= set(field.members[pool])
        found.append((frozenset(seen), frozenset(pools)))
    return found


def _common_level(wants: list[int], capacity: int) -> int:
    """The highest level at which all together, each with at most that much, fit the capacity."""
    left = capacity
    for place, want in enumerate(sorted(wants)):
        count = len(wants) - place
        if want * count > left:
            return left // count
        left -= want
    return max(wants)


class _Network:
    """A maximum flow from instances, each with its demand, to pools."""

    def __init__(self, field: _Field, demands: dict[int, int], pools: frozenset[int]) -> None:
        self.flows: _Flows = {one: {} for one in demands}
        self._field = field
        self._demands = demands
        self._pools = pools
        self._spare = {pool: field.capacity((pool,)) for pool in pools}
        self._reach = {one: [pool for pool in field.reach[one] if pool in pools] for one in demands}

    def route(self) -> frozenset[int]:
        """Find the flow. Returns the instances that together want more than their pools have; empty if none do."""
        short = {}
        for one in sorted(self._demands, key=lambda one: (self._field.capacity(self._reach[one]), one)):
            left = self._demands[one] - self._spread(one)
            if left:
                short[one] = left
        while short:
            came_from, end = self._search(short)
            if end is None:
                return frozenset(~step for step in came_from if step < 0)
            self._push(short, came_from, end)
        return frozenset()

    def _spread(self, one: int) -> int:
        """Give an instance what it demands on its least busy CPUs, as far as they go; returns how much that is."""
        flows, left = self.flows[one], self._demands[one]
        spare = size = 0
        chosen = []
        for pool in sorted(
            self._reach[one], key=lambda pool: (-self._spare[pool] / len(self._field.pools[pool]), pool)
        ):
            own_size = len(self._field.pools[pool])
            # What is chosen so far is enough to leave each of its CPUs as much as this pool's have.
            if spare > left and (spare - left) * own_size >= self._spare[pool] * size:
                break
            chosen.append(pool)
            spare, size = spare + self._spare[pool], size + own_size
        level = max(0, spare - left) // size
        for pool in chosen:
            amount = min(left, self._spare[pool] - level * len(self._field.pools[pool]))
            if amount > 0:
                flows[pool] = amount
                self._spare[pool] -= amount
                left -= amount
        return self._demands[one] - left

    def _search(self, short: Collection[int]) -> tuple[dict[int, int | None], int | None]:
        """The nearest pool with time to spare for somebody who is short, and how each step was reached.

        Steps are pools, and instances as complements. Without such a pool all that can be reached is tight.
        """
        came_from: dict[int, int | None] = dict.fromkeys(~one for one in short)
        waiting = deque(came_from)
        while waiting:
            step = waiting.popleft()
            if step < 0:
                near = self._reach[~step]
            elif self._spare[step]:
                return came_from, step
            else:
                near = [~one for one in self._field.members[step] if self.flows.get(one, {}).get(step, 0)]
            for other in near:
                if other not in came_from:
                    came_from[other] = step
                    waiting.append(other)
        return came_from, None

    def _push(self, short: dict[int, int], came_from: Mapping[int, int | None], end: int) -> None:
        """Move as much as fits along the way that was found."""
        way: list[int] = []
        step: int | None = end
        while step is not None:
            way.append(step)
            step = came_from[step]
        takes = [(~one, pool) for one, pool in zip(way[1::2], way[::2], strict=True)]
        leaves = [(~one, pool) for one, pool in zip(way[1:-1:2], way[2::2], strict=True)]
        source = ~way[-1]
        amount = min([short[source], self._spare[end], *(self.flows[one][pool] for one, pool in leaves)])
        for one, pool in takes:
            self.flows[one][pool] = self.flows[one].get(pool, 0) + amount
        for one, pool in leaves:
            self.flows[one][pool] -= amount
        self._spare[end] -= amount
        short[source] -= amount
        if not short[source]:
            del short[source]
