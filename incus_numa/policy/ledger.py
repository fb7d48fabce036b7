"""What is committed on each node and CPU while a plan is made.

Each plan has its own; `desk.Standing` keeps one between plans and gives copies of it.

Load of a node = committed vCPU weight / usable CPUs; an instance's weight is spread over its nodes by usable CPUs.
Committing is cheap and sums are made when they are first read, since every plan commits the whole host first and
most of them then decide about one instance.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from copy import copy
from functools import reduce
from itertools import accumulate
from operator import or_
from typing import NamedTuple

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import Machine, Node
from incus_numa.policy.rooms import Rooms, bits


def usable_cpus(machine: Machine, reserved: CpuSet) -> Mapping[int, CpuSet]:
    """Usable CPUs of every node: online, not isolated, not reserved. Empty sets for nodes that hold memory only.

    A CPU that a broken table gives to several nodes counts for the first, so that sums over nodes are true.
    """
    free = machine.online - machine.isolated - reserved
    usable = {}
    for node in machine.nodes:
        usable[node.id] = node.cpus & free
        free -= usable[node.id]
    return usable


class Commitment(NamedTuple):
    """One instance's part: nodes and CPUs as masks (no CPUs: unknown), vCPU weight, bytes of memory.

    `hugepages` are bytes by page size. `exclusive` CPUs are usable by nobody else while they are committed; `firm`
    says that the instance is to have as many CPUs as it has on each node, `pinned` that it has to have these;
    `anywhere` that its nodes are not known or not chosen; `chosen` that we chose them, so it needs a CPU on each.
    """

    nodes: int
    cpus: int
    weight: float
    memory_bytes: int
    hugepages: tuple[tuple[int, int], ...] = ()
    exclusive: bool = False
    firm: bool = False
    pinned: bool = False
    anywhere: bool = False
    chosen: bool = False


class Ledger:
    """Running sums of commitments, by instance so that each can be taken back."""

    def __init__(self, machine: Machine, usable: Mapping[int, CpuSet]) -> None:
        self.machine = machine
        self.nodes = NodeSet(usable)
        self._all_usable = usable
        self._owned = 0
        self._open_to_all()
        self.rooms = Rooms({node.id: _ordinary_bytes(node) for node in machine.nodes})
        sizes = {size for node in machine.nodes for size in node.hugepages}
        self.huge = {size: Rooms({one.id: one.hugepages.get(size, 0) for one in machine.nodes}) for size in sizes}
        self._entries: dict[InstanceKey, Commitment] = {}
        self._weights: dict[int, float] = {}
        self._node_load: dict[int, float] | None = None
        self._cpu_load: dict[int, dict[int, float]] = {}

    def _open_to_all(self) -> None:
        """What is usable while nobody has the exclusive CPUs but their owners."""
        owned = self._owned
        self.usable: Mapping[int, CpuSet] = (
            {node: CpuSet.from_mask(cpus.mask & ~owned) for node, cpus in self._all_usable.items()}
            if owned
            else self._all_usable
        )
        self.cpu_count = {node: len(cpus) for node, cpus in self.usable.items()}
        self.cpu_nodes = NodeSet(node for node, count in self.cpu_count.items() if count)
        self.total_cpus = sum(self.cpu_count.values())
        self.usable_mask = sum(cpus.mask for cpus in self.usable.values())
        self._largest = list(accumulate(sorted(self.cpu_count.values(), reverse=True)))

    def fork(self) -> Ledger:
        """A copy that can change without changing this one."""
        new = copy(self)
        new.rooms = self.rooms.fork()
        new.huge = {size: rooms.fork() for size, rooms in self.huge.items()}
        new._entries, new._weights = dict(self._entries), dict(self._weights)
        new._node_load = None if self._node_load is None else dict(self._node_load)
        new._cpu_load = {node: dict(loads) for node, loads in self._cpu_load.items()}
        return new

    def with_cpus(self, usable: Mapping[int, CpuSet]) -> Ledger:
        """A copy in which other CPUs are usable; loads are what they would be then."""
        new = self.fork()
        new._all_usable = usable
        new._own(0)
        return new

    @property
    def node_load(self) -> Mapping[int, float]:
        """Load of every node; 0 for nodes without usable CPUs."""
        if self._node_load is None:
            self._node_load = dict.fromkeys(self.usable, 0.0)
            for mask, weight in self._weights.items():
                self._add_load(self._node_load, mask, weight)
        return self._node_load

    def full_with(self, weight: float) -> float:
        """The load above which a node is crowded once that weight is committed, too: 1, or the mean if that is more."""
        if not self.total_cpus:
            return 1.0
        return max(1.0, (sum(self._weights.values()) + weight) / self.total_cpus)

    def report_load(self) -> dict[int, float]:
        """Committed weight over usable CPUs of every node that has any; exclusive CPUs are counted like all others."""
        sizes = {node: len(cpus) for node, cpus in self._all_usable.items() if cpus}
        if not self._owned:
            return {node: self.node_load[node] for node in sizes}
        loads = dict.fromkeys(sizes, 0.0)
        for entry in self._entries.values():
            members = [node for node in bits(entry.nodes) if node in sizes]
            total = sum(sizes[node] for node in members)
            for node in members:
                loads[node] += entry.weight / total
        return loads

    @property
    def entries(self) -> Mapping[InstanceKey, Commitment]:
        """All commitments by instance."""
        return self._entries

    def cpus_of(self, nodes: NodeSet) -> int:
        """How many usable CPUs the nodes have."""
        count = self.cpu_count
        return sum(count[node] for node in nodes if node in count)

    def least_nodes(self, cpus: int) -> int:
        """How many nodes so many CPUs take at least."""
        return bisect_left(self._largest, cpus) + 1

    def commit_all(self, entries: dict[InstanceKey, Commitment]) -> None:
        """Count many instances at once, in a ledger without any. Nodes must be those of the machine."""
        weights, sizes = self._weights, dict[int, int]()
        for mask, cpus, weight, size, huge, exclusive, *_ in entries.values():
            if exclusive:
                self._owned |= cpus
            else:
                weights[mask] = weights.get(mask, 0.0) + weight
            if size:
                sizes[mask] = sizes.get(mask, 0) + size
            for page, amount in huge:
                if page in self.huge:
                    self.huge[page].add(mask, amount)
        for mask, size in sizes.items():
            self.rooms.add(mask, size)
        self._entries = entries
        if self._owned:
            self._own(self._owned)

    def commit(self, key: InstanceKey, entry: Commitment) -> None:
        """Count an instance where it is or will be, and no longer where it was counted before."""
        if key in self._entries:
            self.release(key)
        self._entries[key] = entry
        mask, cpus, weight, size, huge, exclusive, *_ = entry
        if size:
            self.rooms.add(mask, size)
        for page, amount in huge:
            if page in self.huge:
                self.huge[page].add(mask, amount)
        if exclusive:
            self._own(self._owned | cpus)
            return
        self._weights[mask] = self._weights.get(mask, 0.0) + weight
        if self._node_load is not None:
            self._add_load(self._node_load, mask, weight)
        if cpus:
            self._add_cpus(cpus, weight)

    def give_cpus(self, key: InstanceKey, cpus: int) -> None:
        """Count an instance that is there without CPUs with these. They must not be exclusive."""
        entry = self._entries[key]
        self._entries[key] = entry._replace(cpus=cpus)
        self._add_cpus(cpus, entry.weight)

    def release(self, key: InstanceKey) -> Commitment | None:
        """Take an instance's part back and say what it was; None when it has none."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        mask, cpus, weight, size, huge, exclusive, *_ = entry
        self.rooms.take(mask, size)
        for page, amount in huge:
            if page in self.huge:
                self.huge[page].take(mask, amount)
        if exclusive:
            owners = (other.cpus for other in self._entries.values() if other.exclusive)
            self._own(reduce(or_, owners, 0))
            return entry
        self._weights[mask] -= weight
        if self._node_load is not None:
            self._add_load(self._node_load, mask, -weight)
        if cpus:
            self._add_cpus(cpus, -weight)
        return entry

    def _own(self, owned: int) -> None:
        """From now on these CPUs are their owners' alone; loads of the others are on what is left."""
        self._owned = owned
        self._open_to_all()
        self._node_load = None
        self._cpu_load = {}

    def cpu_load(self, node: int) -> Mapping[int, float]:
        """Committed load of each online CPU of a node, from instances whose CPUs are known."""
        loads = self._cpu_load.get(node)
        if loads is None:
            loads = self._cpu_load[node] = {cpu.id: 0.0 for cpu in self.machine.cpus_by_node[node]}
            here = self.machine.node_by_id[node].cpus.mask
            for entry in self._entries.values():
                if entry.cpus & here:
                    _add_evenly(loads, entry.cpus & here, entry.weight / entry.cpus.bit_count())
        return loads

    def _add_load(self, loads: dict[int, float], mask: int, weight: float) -> None:
        mask &= self.cpu_nodes.mask
        if not mask & (mask - 1):
            if mask:
                node = mask.bit_length() - 1
                loads[node] += weight / self.cpu_count[node]
            return
        members = list(bits(mask))
        if members:
            load = weight / sum(self.cpu_count[node] for node in members)
            for node in members:
                loads[node] += load

    def _add_cpus(self, cpus: int, weight: float) -> None:
        """Add to the loads of CPUs on those nodes whose loads were asked for."""
        part, known = weight / cpus.bit_count(), self.machine.node_by_id
        for node, loads in self._cpu_load.items():
            here = cpus & known[node].cpus.mask
            if here:
                _add_evenly(loads, here, part)


def _add_evenly(loads: dict[int, float], cpus: int, part: float) -> None:
    for cpu in bits(cpus):
        if cpu in loads:
            loads[cpu] += part


def _ordinary_bytes(node: Node) -> int | None:
    """Memory of a node for instances: without huge pages, which are set aside, and what is kept for the host."""
    if node.memory_bytes is None:
        return None
    return max(0, node.memory_bytes - sum(node.hugepages.values()) - node.reserved_bytes)
