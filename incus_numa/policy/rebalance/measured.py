"""Measured load of the nodes: which of their CPUs are kept busy, by whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from incus_numa.cpuset import NodeSet
from incus_numa.policy.desk import Desk
from incus_numa.policy.rooms import bits
from incus_numa.settings import RebalanceSettings

EQUAL = 1e-9
"""Loads, and amounts of the potential, that differ by less are equal."""


class Measured:
    """Busy CPUs over usable ones, of every node that has usable CPUs that are not exclusive to somebody.

    `mean` is all that is busy over all that is usable; moves do not change it. `cpus` never changes, `load` only by
    `shift`.
    """

    def __init__(self, cpus: Mapping[int, int], busy: Mapping[int, float]) -> None:
        self.cpus = {node: count for node, count in cpus.items() if count}
        self.load = {node: busy.get(node, 0.0) / count for node, count in self.cpus.items()}
        self._rising: list[int] = []
        total = sum(self.cpus.values())
        self.mean = sum(busy.get(node, 0.0) for node in self.cpus) / total if total else 0.0

    @property
    def imbalance(self) -> float | None:
        """The highest load over the mean; None when nothing is busy."""
        return max(self.load.values()) / self.mean if self.mean > 0 else None

    @property
    def rising(self) -> Sequence[int]:
        """All nodes, the least loaded first."""
        if not self._rising:
            self._rising = sorted(self.load, key=self.load.__getitem__)
        return self._rising

    def count(self, mask: int) -> int:
        """Usable CPUs of a set of nodes that are nobody's own."""
        cpus = self.cpus
        if not mask & (mask - 1):
            return cpus.get(mask.bit_length() - 1, 0)
        return sum(cpus.get(node, 0) for node in bits(mask))

    def shift(self, mask: int, busy: float) -> None:
        """Add so many busy CPUs to a set of nodes, spread over it by usable CPUs."""
        count = self.count(mask)
        if count:
            self._rising = []
            for node in bits(mask):
                if node in self.load:
                    self.load[node] += busy / count

    def with_more(self, mask: int, busy: float) -> Measured:
        """The loads if so many more CPUs were busy on a set of nodes."""
        count, own = self.count(mask), NodeSet.from_mask(mask)
        parts = {node: busy / count if count and node in own else 0.0 for node in self.cpus}
        return Measured(self.cpus, {node: (self.load[node] + parts[node]) * cpus for node, cpus in self.cpus.items()})

    def above(self, limit: float) -> list[int]:
        """The nodes whose load is above the limit, the most loaded first, then the lowest id."""
        found = [node for node, load in self.load.items() if load > limit + EQUAL]
        return sorted(found, key=lambda node: (-round(self.load[node], 9), node))


def is_even(measured: Measured, limits: RebalanceSettings) -> bool:
    """Whether no node is above the mean by more than the margin."""
    return not too_loaded(measured, limits)


def too_loaded(measured: Measured, limits: RebalanceSettings) -> list[int]:
    """The nodes that are above the mean by more than the margin, the most loaded first."""
    return measured.above((1 + limits.margin) * measured.mean)


def target_load(measured: Measured, limits: RebalanceSettings) -> float:
    """What a node is brought down to once the load is not even: the mean and half the margin."""
    return (1 + limits.margin / 2) * measured.mean


def measure(desk: Desk) -> Measured:
    """What the snapshot's load comes to, every instance spread over its nodes as the ledger spreads weights.

    CPUs that are exclusive to somebody, and what their owner keeps busy, are left out: nobody could be moved to them.
    Unknown load counts as none.
    """
    ledger, load = desk.ledger, desk.snapshot.load
    busy_by_set: dict[int, float] = {}
    entries = ledger.entries
    for key in sorted(load.cpus_by_instance):
        entry = entries.get(key)
        if entry is not None and not entry.exclusive:
            mask = entry.nodes & ledger.cpu_nodes.mask
            busy_by_set[mask] = busy_by_set.get(mask, 0.0) + max(0.0, load.cpus_by_instance[key])
    measured = Measured(ledger.cpu_count, {})
    busy = {node: max(0.0, load.other_by_node.get(node, 0.0)) for node in measured.cpus}
    for mask in sorted(busy_by_set):
        count = measured.count(mask)
        for node in bits(mask):
            busy[node] += busy_by_set[mask] * measured.cpus[node] / count
    return Measured(ledger.cpu_count, busy)
