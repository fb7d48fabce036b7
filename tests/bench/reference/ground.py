"""A machine as plain numbers, and its sets of nodes by kind of node: what every reference is computed from.

Nothing here is shared with `policy`, but which CPUs are usable. Nodes are positions (0, 1, ...), sets of them masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import comb

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.machine import LOCAL_DISTANCE, Machine
from incus_numa.policy.ledger import usable_cpus

PLENTY = 1 << 55
"""Room of a node whose memory is unknown: it never decides, and sums of it still fit 64 bits."""

Make = tuple[int, ...]
"""How many nodes of each kind a set has."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Usable CPUs and bytes by position; `far` is the mean of both directions' kernel distances, `known` if any is."""

    ids: tuple[int, ...]
    cpus: tuple[int, ...]
    memory: tuple[int, ...]
    far: tuple[tuple[float, ...], ...]
    known: bool

    @cached_property
    def position(self) -> dict[int, int]:
        """Positions by node id."""
        return {node: index for index, node in enumerate(self.ids)}

    def mask(self, nodes: NodeSet) -> int:
        """Positions of some nodes as a mask."""
        return sum(1 << self.position[node] for node in nodes)

    def cpus_of(self, mask: int) -> int:
        """Usable CPUs of a set."""
        return sum(self.cpus[index] for index in bits(mask))

    def mean_distance(self, mask: int) -> float:
        """Mean kernel distance over ordered pairs of different nodes; local for one node."""
        members = list(bits(mask))
        pairs = [self.far[a][b] for a, b in combinations(members, 2)]
        return sum(pairs) / len(pairs) if pairs else float(LOCAL_DISTANCE)


def survey(machine: Machine) -> Ground:
    """The numbers of a machine. A pair of unknown distance counts as the farthest known one."""
    usable = usable_cpus(machine, CpuSet())
    ids = tuple(usable)
    given = [value for node in machine.nodes for other, value in node.distances.items() if other != node.id]
    farthest = max(given, default=LOCAL_DISTANCE)

    def between(a: int, b: int) -> float:
        there, back = machine.distance(a, b), machine.distance(b, a)
        return ((farthest if there is None else there) + (farthest if back is None else back)) / 2

    return Ground(
        ids=ids,
        cpus=tuple(len(cpus) for cpus in usable.values()),
        memory=tuple(PLENTY if (size := machine.node_by_id[node].memory_bytes) is None else size for node in ids),
        far=tuple(tuple(0.0 if a == b else between(a, b) for b in ids) for a in ids),
        known=bool(given),
    )


@dataclass(frozen=True, kw_only=True)
class Kinds:
    """Nodes that are alike in CPUs and (where `by_memory`) memory: only how many of each matters for load."""

    members: tuple[tuple[int, ...], ...]
    cpus: tuple[int, ...]
    memory: tuple[int, ...]

    def makes(self, width: int, cpus: int, memory: int) -> Iterator[Make]:
        """All make-ups of that many nodes that hold CPUs and memory when nothing else is there."""
        for make in _splits([len(one) for one in self.members], width):
            if dot(make, self.cpus) >= cpus and dot(make, self.memory) >= memory:
                yield make

    def narrowest(self, cpus: int, memory: int, limit: int) -> tuple[Make, ...] | None:
        """All make-ups of the smallest width that holds both; none if none does; None where they are over the limit."""
        sizes = [len(one) for one in self.members]
        for width in range(1, sum(sizes) + 1):
            if sum(sorted(self._each(self.cpus))[-width:]) < cpus:
                continue
            if _split_count(sizes, width) > limit:
                return None
            found = tuple(self.makes(width, cpus, memory))
            if found:
                return found
        return ()

    def _each(self, values: Sequence[int]) -> list[int]:
        return [value for members, value in zip(self.members, values, strict=True) for _ in members]


def kinds_of(ground: Ground, *, by_memory: bool) -> Kinds:
    """The kinds of nodes of a machine. Without memory nodes that have no CPUs are left out."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (cpus, memory) in enumerate(zip(ground.cpus, ground.memory, strict=True)):
        if cpus or by_memory:
            groups.setdefault((cpus, memory if by_memory else PLENTY), []).append(index)
    ordered = sorted(groups.items(), reverse=True)
    return Kinds(
        members=tuple(tuple(members) for _, members in ordered),
        cpus=tuple(cpus for (cpus, _), _ in ordered),
        memory=tuple(memory for (_, memory), _ in ordered),
    )


def bits(mask: int) -> Iterator[int]:
    """Positions in a mask, ascending."""
    index = 0
    while mask:
        if mask & 1:
            yield index
        mask >>= 1
        index += 1


def mask_of(members: Iterable[int]) -> int:
    """Positions as a mask."""
    return sum(1 << index for index in members)


def dot(make: Make, values: Sequence[int]) -> int:
    """A sum over the nodes of a make-up."""
    return sum(count * value for count, value in zip(make, values, strict=True))


def _splits(sizes: Sequence[int], width: int) -> Iterator[Make]:
    if not sizes:
        if not width:
            yield ()
        return
    rest = sum(sizes[1:])
    for first in range(max(0, width - rest), min(width, sizes[0]) + 1):
        for more in _splits(sizes[1:], width - first):
            yield (first, *more)


def _split_count(sizes: Sequence[int], width: int) -> int:
    ways = [1] + [0] * width
    for size in sizes:
        ways = [sum(ways[have - more] for more in range(min(size, have) + 1)) for have in range(width + 1)]
    return min(ways[width], comb(sum(sizes), width))
