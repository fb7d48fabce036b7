"""The kubelet's rule: static CPU manager, topology manager `best-effort` or `restricted`, everything Guaranteed.

CPUs are exclusive. The CPU manager offers a hint for every set of nodes whose free CPUs are enough, preferred where the
set is as narrow as the machine's CPUs, free or not, allow. The merge takes a preferred hint before others, then the
narrower, and of equally wide masks the smaller number, which packs the lowest ids. Then whole free nodes are taken, and
the rest from the nodes with the fewest free CPUs, each to its end. Read in the source of Kubernetes
(topologymanager/policy.go, bitmask.go; cpumanager/policy_static.go, cpu_assignment.go).

No mask is enumerated, of which 24 nodes have 16 million: with hints from one manager the merge's answer is the
narrowest set with enough free CPUs whose highest id is the lowest possible, then its second highest, and so on, which
is found node by node.

What is refused: with fewer free CPUs than asked for there is no hint. `best-effort` admits that, and then the CPU
manager fails (`not enough cpus available to satisfy request`), so the instance does not run. `restricted` refuses a
set that is wider than preferred, too. Memory gives no hints, as with the kubelet's default memory manager, `None`; its
limit of 8 nodes is taken as raised (`max-allowable-numa-nodes`). Cores and sockets, which decide CPUs but not how many
of a node, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from incus_numa.cpuset import NodeSet
from incus_numa.replay.ground import Ground, Seat
from incus_numa.replay.stays import Stay


class KubeletHints:
    """The narrowest, then the lowest nodes with enough CPUs that are nobody's."""

    def __init__(self, ground: Ground, *, restricted: bool) -> None:
        self._ground = ground
        self._restricted = restricted
        self._free = dict(ground.cpus)
        self._seats: dict[str, Seat] = {}

    def arrive(self, stay: Stay) -> Mapping[str, Seat]:
        """Refuses what the free CPUs do not hold; never moves."""
        mask = merged_mask(self._free, stay.vcpus)
        if mask is None or (self._restricted and len(mask) > self._preferred_width(stay.vcpus)):
            return {}
        taken = self._take(mask, stay.vcpus)
        for node, count in taken.items():
            self._free[node] -= count
        seat = Seat(nodes=NodeSet(taken), vcpus=taken)
        self._seats[stay.name] = seat
        return {stay.name: seat}

    def depart(self, name: str) -> None:
        """Its CPUs are free again."""
        for node, count in self._seats.pop(name).vcpus.items():
            self._free[node] += int(count)

    def _take(self, mask: Sequence[int], vcpus: int) -> dict[int, int]:
        """CPUs by node: whole free nodes, then the rest from the nodes with the fewest free CPUs."""
        taken: dict[int, int] = {}
        for node in mask:
            if self._free[node] == self._ground.cpus[node] <= vcpus:
                taken[node] = self._free[node]
                vcpus -= self._free[node]
        for node in sorted(mask, key=lambda one: (self._free[one], one)):
            if node not in taken and vcpus:
                taken[node] = min(self._free[node], vcpus)
                vcpus -= taken[node]
        return taken

    def _preferred_width(self, vcpus: int) -> int:
        return _width(list(self._ground.cpus.values()), vcpus) or 0


def merged_mask(free: Mapping[int, int], vcpus: int) -> Sequence[int] | None:
    """The nodes of the merged hint, ascending; None when all free CPUs together are not enough.

    `free` has its nodes in ascending order.
    """
    nodes, counts = list(free), list(free.values())
    width = _width(counts, vcpus)
    if width is None:
        return None
    mask: list[int] = []
    rest, end = vcpus, len(nodes)
    for left in range(width, 0, -1):
        # The highest node of the set is the first one up to which the nodes hold what is left.
        top = next(place for place in range(end) if _holds(counts[: place + 1], left, rest))
        mask.append(nodes[top])
        rest, end = rest - counts[top], top
    return mask[::-1]


def _width(counts: Sequence[int], vcpus: int) -> int | None:
    """How many of the largest counts add up to the vCPUs; None when all do not."""
    sums = accumulate(sorted(counts, reverse=True))
    return next((width for width, total in enumerate(sums, start=1) if total >= vcpus), None)


def _holds(counts: Sequence[int], width: int, vcpus: int) -> bool:
    return len(counts) >= width and sum(sorted(counts)[-width:]) >= vcpus
