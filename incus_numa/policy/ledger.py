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
from itertools import accumulate
from typing import NamedTuple

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import Machine
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
    """One instance's part: nodes and CPUs as masks (no CPUs: unknown), vCPU weight, bytes of memory."""

    nodes: int
    cpus: int
    weight: float
    memory_bytes: int


class Ledger:
    """Running sums of commitments, by instance so that each can be taken back."""

    def __init__(self, machine: Machine, usable: Mapping[int, CpuSet]) -> None:
        self.machine = machine
        self.usable = usable
        self.nodes = NodeSet(usable)
        self.cpu_count = {node: len(cpus) for node, cpus in usable.items()}
        self.cpu_nodes = NodeSet(node for node, count in self.cpu_count.items() if count)
        self.total_cpus = sum(self.cpu_count.values())
        self.usable_mask = sum(cpus.mask for cpus in usable.values())
        self._largest = list(accumulate(sorted(self.cpu_count.values(), reverse=True)))
        self.rooms = Rooms({node.id: node.memory_bytes for node in machine.nodes})
        self._entries: dict[InstanceKey, Commitment] = {}
        self._weights: dict[int, float] = {}
        self._node_load: dict[int, float] | None = None
        self._cpu_load: dict[int, dict[int, float]] = {}

    def fork(self) -> Ledger:
        """A copy that can change without changing this one."""
        new = copy(self)
        new.rooms = self.rooms.fork()
        new._entries, new._weights = dict(self._entries), dict(self._weights)
        new._node_load = None if self._node_load is None else dict(self._node_load)
        new._cpu_load = {node: dict(loads) for node, loads in self._cpu_load.items()}
        return new

    @property
    def node_load(self) -> Mapping[int, float]:
        """Load of every node; 0 for nodes without usable CPUs."""
        if self._node_load is None:
            self._node_load = dict.fromkeys(self.usable, 0.0)
            for mask, weight in self._weights.items():
                self._add_load(self._node_load, mask, weight)
        return self._node_load

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
        for mask, _, weight, size in entries.values():
            weights[mask] = weights.get(mask, 0.0) + weight
            if size:
                sizes[mask] = sizes.get(mask, 0) + size
        for mask, size in sizes.items():
            self.rooms.add(mask, size)
        self._entries = entries

    def commit(self, key: InstanceKey, entry: Commitment) -> None:
        """Count an instance where it is or will be, and no longer where it was counted before."""
        if key in self._entries:
            self.release(key)
        self._entries[key] = entry
        mask, cpus, weight, size = entry
        self._weights[mask] = self._weights.get(mask, 0.0) + weight
        if size:
            self.rooms.add(mask, size)
        if self._node_load is not None:
            self._add_load(self._node_load, mask, weight)
        for node, loads in self._cpu_load.items():
            self._add_cpu_load(node, loads, cpus, weight)

    def release(self, key: InstanceKey) -> Commitment | None:
        """Take an instance's part back and say what it was; None when it has none."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._weights[entry.nodes] -= entry.weight
        self.rooms.take(entry.nodes, entry.memory_bytes)
        if self._node_load is not None:
            self._add_load(self._node_load, entry.nodes, -entry.weight)
        for node, loads in self._cpu_load.items():
            self._add_cpu_load(node, loads, entry.cpus, -entry.weight)
        return entry

    def cpu_load(self, node: int) -> Mapping[int, float]:
        """Committed load of each online CPU of a node, from instances whose CPUs are known."""
        loads = self._cpu_load.get(node)
        if loads is None:
            loads = self._cpu_load[node] = {cpu.id: 0.0 for cpu in self.machine.cpus_by_node[node]}
            here = self.machine.node_by_id[node].cpus.mask
            for entry in self._entries.values():
                if entry.cpus & here:
                    self._add_cpu_load(node, loads, entry.cpus, entry.weight)
        return loads

    def _add_load(self, loads: dict[int, float], mask: int, weight: float) -> None:
        members = list(bits(mask & self.cpu_nodes.mask))
        if members:
            load = weight / sum(self.cpu_count[node] for node in members)
            for node in members:
                loads[node] += load

    def _add_cpu_load(self, node: int, loads: dict[int, float], cpus: int, weight: float) -> None:
        here = cpus & self.machine.node_by_id[node].cpus.mask
        if here:
            load = weight / cpus.bit_count()
            for cpu in bits(here):
                if cpu in loads:
                    loads[cpu] += load
