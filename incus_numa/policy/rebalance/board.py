"""Everything that one decision works on: loads, movers, what may go where, and what is left of the budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance
from incus_numa.policy.desk import Desk
from incus_numa.policy.rebalance import potential
from incus_numa.policy.rebalance.admission import Admission
from incus_numa.policy.rebalance.measured import Measured
from incus_numa.policy.rebalance.movers import Mover
from incus_numa.policy.rebalance.price import Price, price_of
from incus_numa.settings import RebalanceSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Movers that go elsewhere together, each to a mask of nodes, and what that brings and costs in all."""

    goes: tuple[tuple[Mover, int], ...]
    gain: float
    price: float
    size_bytes: int

    @property
    def surplus(self) -> float:
        """Gain less price, for each instance that moves."""
        return (self.gain - self.price) / len(self.goes)


class Board:
    """Loads and movers as they are after the changes that were made on it; each mover moves once at most."""

    def __init__(
        self,
        desk: Desk,
        measured: Measured,
        movers: Iterable[Mover],
        limits: RebalanceSettings,
        most_load: float,
        relieved: frozenset[int] | None = None,
    ) -> None:
        self.desk = desk
        self.measured = measured
        self.limits = limits
        self.most_load = most_load
        self._relieved = relieved
        self.admission = Admission(desk)
        self.left_moves, self.left_bytes = limits.max_moves, limits.max_bytes
        self._spreads: dict[int, float] = {}
        self.at: dict[int, list[Mover]] = {node: [] for node in measured.cpus}
        """Movers by node, in order of their keys, those of several nodes at each of them."""
        for mover in sorted(movers, key=lambda mover: mover.key):
            for node in NodeSet.from_mask(mover.nodes):
                if node in self.at:
                    self.at[node].append(mover)
        self._together = self._find_groups(desk.snapshot.instances)

    def what_if(self, measured: Measured) -> Board:
        """The same board with other loads; the two share everything else."""
        new = copy(self)
        new.measured = measured
        return new

    def hot(self) -> list[int]:
        """Nodes that are too loaded, of those to be relieved, the most loaded first."""
        found = self.measured.above(self.most_load)
        return found if self._relieved is None else [node for node in found if node in self._relieved]

    def ceiling(self, node: int) -> float:
        """The highest load that a node may get by relieving this one: less by half the margin than this one's is.

        Else a busy instance would go from node to node after whatever little else is there.
        """
        return self.measured.load[node] / (1 + self.limits.margin / 2)

    def groups(self, node: int) -> Sequence[tuple[Mover, ...]]:
        """Groups that are on this node alone, and that may move as a whole: two movers or more each."""
        here = set(map(id, self.at[node]))
        return [group for group in self._together.get(node, ()) if all(id(mover) in here for mover in group)]

    def price(self, mover: Mover, after: int) -> Price:
        """What it costs to move there."""
        found = mover.prices.get(after)
        if found is None:
            before, nodes = NodeSet.from_mask(mover.nodes), NodeSet.from_mask(after)
            found = price_of(self.desk.machine, mover.instance, mover.memory, before, nodes, self.limits)
            mover.prices[after] = found
        return found

    def nearer(self, mover: Mover, after: int) -> float:
        """By how much the potential falls because the nodes to go to are nearer to each other."""
        if not mover.is_wide:
            return 0.0
        here, there = self._spread(mover.nodes), self._spread(after)
        return mover.load_cpus * self.desk.settings.distance_weight * (here - there)

    def fits_budget(self, change: Change) -> bool:
        """Whether what is left of moves and bytes allows the change.

        One instance with more memory than is allowed at a time may move all the same if no other memory does: else it
        never could.
        """
        first = len(change.goes) == 1 and self.left_bytes == self.limits.max_bytes
        return len(change.goes) <= self.left_moves and (first or change.size_bytes <= self.left_bytes)

    def make(self, change: Change) -> None:
        """Count a change as made."""
        self.admission.admit(change.goes)
        self.left_moves -= len(change.goes)
        self.left_bytes -= change.size_bytes
        for mover, after in change.goes:
            self.measured.shift(mover.nodes, -mover.load_cpus)
            self.measured.shift(after, mover.load_cpus)
            for node in NodeSet.from_mask(mover.nodes):
                if node in self.at:
                    self.at[node].remove(mover)

    def _spread(self, mask: int) -> float:
        found = self._spreads.get(mask)
        if found is None:
            found = self._spreads[mask] = potential.spread(self.desk.machine, mask)
        return found

    def _find_groups(self, instances: Iterable[Instance]) -> dict[int, list[tuple[Mover, ...]]]:
        """By node the groups all of whose running members are movers on it."""
        members: dict[str, list[Instance]] = {}
        for instance in instances:
            if instance.group is not None:
                members.setdefault(instance.group, []).append(instance)
        known = {mover.key: mover for movers in self.at.values() for mover in movers}
        found: dict[int, list[tuple[Mover, ...]]] = {}
        for _, group in sorted(members.items()):
            movers = [known[one.key] for one in sorted(group, key=lambda one: one.key) if one.key in known]
            masks = {mover.nodes for mover in movers}
            if len(movers) == len(group) > 1 and len(masks) == 1 and not movers[0].is_wide:
                found.setdefault(movers[0].nodes.bit_length() - 1, []).append(tuple(movers))
        return found
