"""numad's rule, twice: the daemon that binds what runs, and the advice of `numad -w VCPUS:MEGABYTES`.

Each node has a magnitude: (10 x needed + 4 x further free memory) x (6 x needed + 1 x further free CPUs), in MB and
hundredths of CPUs. For each node the magnitudes of it and its nearest ones, as many as the request needs by the size
of the first node, are added up, each divided by the square of its distance from that node; the node with the largest
sum is the seed. Nodes are then taken by their distance from the seed alone, ties by magnitude, until enough are taken:

- the daemon takes as many as the request needs by the size of the first node, less half of its margin of utilization,
  and more only for memory: while the system is not overcommitted it takes for granted that there is CPU time, and
  when it is, too, unless the free CPUs are enough all the same. It asks for memory with the margin on top.
- the advice, which libvirt asks for with `placement="auto"`, goes on until the free CPUs and the free memory of what
  is taken are enough, so it gives more nodes the fuller they are.

Both end with all nodes, refuse nothing and move nobody at an arrival. Read in numad.c
(`combined_value_of_weighted_resources`, `pick_numa_nodes`, `manage_loads`).

Ours, where numad measures: all vCPUs are busy and all memory of an instance is used, its vCPUs spread over its nodes by
usable CPUs, its memory filling them in the order they were taken; the daemon binds an instance when it arrives. All
threads count as full CPUs (`-t 100`; numad by itself takes a sibling for a fifth of a CPU). Where the memory of a node
or an instance is unknown, CPUs alone decide. Remaining ties go to the lowest id. How the daemon later moves running
processes by measured use is in `peer_numad_daemon`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

from incus_numa.model.machine import LOCAL_DISTANCE, Machine
from incus_numa.replay.ground import Ground, Seat
from incus_numa.replay.stays import Stay

HUNDREDTHS = 100
MEGABYTE = 1 << 20
MARGIN_MB = 100
TARGET_PERCENT = 85
"""The utilization that the daemon aims at (`-u`)."""


class _Taken(NamedTuple):
    seat: Seat
    megabytes: Mapping[int, int]


class NodePicker:
    """`pick_numa_nodes` on one machine. CPUs are hundredths, memory is megabytes."""

    def __init__(self, ground: Ground) -> None:
        sizes = [ground.machine.node_by_id[node].memory_bytes for node in ground.cpus]
        self.knows_memory = None not in sizes
        self.megabytes = {node: (size or 0) // MEGABYTE for node, size in zip(ground.cpus, sizes, strict=True)}
        self.hundredths = {node: count * HUNDREDTHS for node, count in ground.cpus.items()}
        self._first = next(iter(ground.cpus))
        self._rings = {node: _rings(ground, node) for node in ground.cpus}
        # Half of the margin of utilization is what a node may be short of.
        self._flex = (100 - TARGET_PERCENT) * self.hundredths[self._first] // 200

    def pick(
        self,
        asked: int,
        megabytes: int,
        free: Mapping[int, int],
        room: Mapping[int, int],
        *,
        advises: bool = False,
        takes_cpus_for_granted: bool = True,
    ) -> list[int]:
        """The nodes in the order in which they are taken, by free CPUs and memory (`room`, unless it is unknown).

        The advice needs all CPUs that are asked for; the daemon can do with fewer.
        """
        flex = 0 if advises else self._flex
        # numad never sees less than a hundredth free.
        cpus = {node: max(1, count) for node, count in free.items()}
        if not self.knows_memory:
            room = dict.fromkeys(cpus, MARGIN_MB)
        magnitude = {node: _magnitude(asked, megabytes, cpus[node], room[node]) for node in cpus}
        least = self._least_nodes(asked - flex, megabytes)
        seed = max(cpus, key=lambda node: (self._score(node, least, magnitude), -node))
        order: list[int] = []
        for _, node in self._nearest(seed, magnitude):
            order.append(node)
            megabytes = max(0, megabytes - (room[node] - MARGIN_MB))
            asked = max(0, asked - cpus[node])
            lacks_cpus = asked > flex and (advises or not takes_cpus_for_granted)
            if len(order) >= least and not megabytes and not lacks_cpus:
                break
        return order

    def _least_nodes(self, asked: int, megabytes: int) -> int:
        """Nodes that the request needs when all are as large as the first one and empty."""
        by_cpus = -(-asked // self.hundredths[self._first])
        by_memory = -(-megabytes // max(1, self.megabytes[self._first]))
        return max(1, min(max(by_cpus, by_memory), len(self.hundredths)))

    def _score(self, seed: int, count: int, magnitude: Mapping[int, int]) -> int:
        score = 0
        for place, (distance, node) in enumerate(self._nearest(seed, magnitude)):
            if place == count:
                break
            score += magnitude[node] // (distance * distance)
        return score

    def _nearest(self, seed: int, magnitude: Mapping[int, int]) -> Iterator[tuple[int, int]]:
        """Distance and node, nearest to the seed first, then the largest magnitude, then the lowest id."""
        for distance, ring in self._rings[seed]:
            for node in sorted(ring, key=lambda one: (-magnitude[one], one)):
                yield distance, node


class NumadScore:
    """The seed with the largest score, then what is nearest to it."""

    def __init__(self, ground: Ground, *, advises: bool) -> None:
        self._ground = ground
        self._advises = advises
        self._picker = NodePicker(ground)
        self._free_cpus = {node: float(count) for node, count in ground.cpus.items()}
        self._free_megabytes = dict(self._picker.megabytes)
        self._taken: dict[str, _Taken] = {}

    def arrive(self, stay: Stay) -> Mapping[str, Seat]:
        """Never refuses and never moves."""
        megabytes = (stay.memory_bytes or 0) // MEGABYTE if self._picker.knows_memory else 0
        order = self._order(stay.vcpus, megabytes)
        seat = self._ground.spread(order, self._ground.weight(stay))
        filled = fill(order, megabytes, self._free_megabytes)
        for node, amount in filled.items():
            self._free_megabytes[node] -= amount
        for node, vcpus in seat.vcpus.items():
            self._free_cpus[node] -= vcpus
        self._taken[stay.name] = _Taken(seat, filled)
        return {stay.name: seat}

    def depart(self, name: str) -> None:
        """Its CPUs and memory are free again."""
        seat, filled = self._taken.pop(name)
        for node, vcpus in seat.vcpus.items():
            self._free_cpus[node] += vcpus
        for node, megabytes in filled.items():
            self._free_megabytes[node] += megabytes

    def _order(self, vcpus: int, megabytes: int) -> list[int]:
        """The nodes in the order in which they are taken."""
        if not self._advises:
            megabytes = with_margin(megabytes)
        # Rounded first, as sums of parts of CPUs are not exact.
        free = {node: int(round(count, 6) * HUNDREDTHS) for node, count in self._free_cpus.items()}
        return self._picker.pick(vcpus * HUNDREDTHS, megabytes, free, self._free_megabytes, advises=self._advises)


def with_margin(amount: int) -> int:
    """What the daemon asks for, so that what is used is no more of it than it aims at."""
    return amount * 100 // TARGET_PERCENT


def fill(order: Iterable[int], megabytes: int, room: Mapping[int, int]) -> dict[int, int]:
    """Memory by node, in this order; what has no room anywhere is left out."""
    filled = {}
    for node in order:
        filled[node] = min(megabytes, max(0, room[node]))
        megabytes -= filled[node]
    return filled


def _magnitude(asked: int, megabytes: int, cpus: int, room: int) -> int:
    memory = 10 * min(megabytes, room) + 4 * max(0, room - megabytes)
    return memory * (6 * min(asked, cpus) + max(0, cpus - asked))


def _rings(ground: Ground, seed: int) -> list[tuple[int, tuple[int, ...]]]:
    """The other nodes and the seed by their distance to it, nearest first."""
    far = sorted((_distance(ground.machine, node, seed), node) for node in ground.cpus)
    return [(distance, tuple(node for _, node in ring)) for distance, ring in groupby(far, key=lambda one: one[0])]


def _distance(machine: Machine, source: int, target: int) -> int:
    known = machine.distance(source, target)
    if known is not None:
        return known
    # An unknown distance counts as the farthest known one, as it does for our own cost.
    return LOCAL_DISTANCE + round(machine.remoteness[source][target] * LOCAL_DISTANCE / 2)
