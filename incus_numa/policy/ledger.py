"""What is committed on each node and CPU while a plan is made. Local to one `planner.plan` call.

Load of a node = committed vCPU weight / usable CPUs; an instance's weight is spread over its nodes by usable CPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Instance, InstanceKey
from incus_numa.model.machine import Machine


def usable_cpus(machine: Machine, reserved: CpuSet) -> Mapping[int, CpuSet]:
    """Usable CPUs of every node: online, not isolated, not reserved. Empty sets for nodes that hold memory only."""
    barred = machine.isolated | reserved
    return {node.id: (node.cpus & machine.online) - barred for node in machine.nodes}


@dataclass(frozen=True, kw_only=True, slots=True)
class Commitment:
    """One instance's part: the same load on each of its nodes, memory by node, and load on each of its CPUs."""

    nodes: tuple[int, ...]
    node_load: float
    memory: tuple[tuple[int, int], ...]
    cpus: CpuSet
    cpu_load: float


class Ledger:
    """Running sums of commitments, by instance so that each can be taken back."""

    def __init__(self, machine: Machine, usable: Mapping[int, CpuSet]) -> None:
        self.machine = machine
        self.usable = usable
        self.cpu_count = {node: len(cpus) for node, cpus in usable.items()}
        self.total_cpus = sum(self.cpu_count.values())
        self.node_load = dict.fromkeys(usable, 0.0)
        self._memory_used = dict.fromkeys(usable, 0)
        self._entries: dict[InstanceKey, Commitment] = {}

    def memory_left(self, node: int) -> int | None:
        """Bytes of a node not yet committed, None when its size is unknown. Can be negative."""
        size = self.machine.node_by_id[node].memory_bytes
        return None if size is None else size - self._memory_used[node]

    def commit(self, instance: Instance, weight: float, nodes: NodeSet, cpus: CpuSet | None) -> None:
        """Count an instance where it is or will be. Without CPUs it loads all usable CPUs of its nodes."""
        self.release(instance.key)
        members = tuple(node for node in nodes if node in self.usable)
        count = sum(self.cpu_count[node] for node in members)
        load = weight / count if count else 0.0
        shares = self._memory_shares(instance.demand.memory_bytes or 0, members)
        entry = Commitment(
            nodes=tuple(node for node in members if self.cpu_count[node]),
            node_load=load,
            memory=shares,
            cpus=cpus or CpuSet(),
            cpu_load=weight / len(cpus) if cpus else 0.0,
        )
        self._entries[instance.key] = entry
        self._add(entry, 1)

    def release(self, key: InstanceKey) -> None:
        """Take an instance's part back; nothing happens when it has none."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._add(entry, -1)

    def cpu_loads(self, cpus: CpuSet) -> dict[int, float]:
        """Committed load of each of the CPUs, from instances whose CPUs are known."""
        loads = dict.fromkeys(cpus, 0.0)
        for entry in self._entries.values():
            if entry.cpus.mask & cpus.mask:
                for cpu in entry.cpus & cpus:
                    loads[cpu] += entry.cpu_load
        return loads

    def _add(self, entry: Commitment, sign: int) -> None:
        for node in entry.nodes:
            self.node_load[node] += sign * entry.node_load
        for node, size in entry.memory:
            self._memory_used[node] += sign * size

    def _memory_shares(self, size: int, nodes: Iterable[int]) -> tuple[tuple[int, int], ...]:
        """Lay memory over the nodes by what each has left, so that a set that fits stays within each node."""
        left = {node: self.memory_left(node) for node in nodes}
        known = {node: max(0, room) for node, room in left.items() if room is not None}
        room = sum(known.values())
        if not size or not known:
            return ()
        if len(known) == 1:
            return ((next(iter(known)), size),)
        if not room:
            return tuple((node, size // len(known)) for node in known)
        return tuple((node, size * part // room) for node, part in known.items())
