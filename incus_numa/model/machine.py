"""The host: CPUs, nodes and distances, as values. Built by `topology`, `simulator` and `plan --machine`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from itertools import accumulate

from incus_numa.cpuset import CpuSet, NodeSet

LOCAL_DISTANCE = 10
"""The distance of a node to itself, by the ACPI SLIT definition."""


class CoreKind(Enum):
    """The two kinds of cores of a hybrid machine."""

    PERFORMANCE = "performance"
    EFFICIENCY = "efficiency"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cpu:
    """One online hardware thread.

    `core` and `l3` are the lowest CPU id that shares it, so they are unique machine-wide. `node` is None for a CPU
    that belongs to no node, `l3` and `socket` are None when unknown. `kind` is None where all cores are of one kind.
    """

    id: int
    node: int | None
    socket: int | None
    core: int
    l3: int | None
    kind: CoreKind | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Core:
    """The online hardware threads that one core has in one node.

    `id` is the core's in `Cpu.core`, `mask` has one bit per thread. `l3` and `kind` are those of the lowest thread.
    """

    id: int
    threads: tuple[int, ...]
    mask: int
    l3: int | None
    kind: CoreKind | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One NUMA node.

    `cpus` are its online CPUs (empty: it holds memory only). Memory in bytes, None when unknown, 0 for a node
    without memory. `distances` maps node ids to the kernel's relative distance (10 is local), empty when unknown.
    `hugepages` is the memory that is set aside for each size of huge pages: page size to bytes. `reserved_bytes` of
    the memory are kept for the host by the settings.
    """

    id: int
    cpus: CpuSet
    memory_bytes: int | None = None
    free_bytes: int | None = None
    distances: Mapping[int, int] = field(default_factory=dict)
    hugepages: Mapping[int, int] = field(default_factory=dict)
    reserved_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A host as the kernel describes it. `nodes` and `cpus` are ordered by id; `warnings` are sentences for people.

    `offline` are CPUs that are plugged in and not online; nothing else is known of them.
    """

    name: str = ""
    nodes: tuple[Node, ...]
    cpus: tuple[Cpu, ...]
    online: CpuSet
    isolated: CpuSet = field(default_factory=CpuSet)
    offline: CpuSet = field(default_factory=CpuSet)
    warnings: tuple[str, ...] = ()

    @cached_property
    def node_by_id(self) -> Mapping[int, Node]:
        """Nodes by id."""
        return {node.id: node for node in self.nodes}

    @cached_property
    def cpu_by_id(self) -> Mapping[int, Cpu]:
        """Online CPUs by id."""
        return {cpu.id: cpu for cpu in self.cpus}

    @cached_property
    def memory_bytes(self) -> int:
        """Memory of all nodes whose size is known."""
        return sum(node.memory_bytes or 0 for node in self.nodes)

    @cached_property
    def memory_nodes(self) -> NodeSet:
        """Nodes that are not known to have no memory: those that memory may be bound to."""
        return NodeSet(node.id for node in self.nodes if node.memory_bytes != 0)

    @cached_property
    def cpus_by_node(self) -> Mapping[int, tuple[Cpu, ...]]:
        """Online CPUs of every node, by id."""
        known = self.cpu_by_id
        return {node.id: tuple(known[cpu] for cpu in node.cpus if cpu in known) for node in self.nodes}

    @cached_property
    def cores_by_node(self) -> Mapping[int, tuple[Core, ...]]:
        """Cores of every node, by id."""
        found: dict[int, tuple[Core, ...]] = {}
        for node, cpus in self.cpus_by_node.items():
            threads: dict[int, list[Cpu]] = {}
            for cpu in cpus:
                threads.setdefault(cpu.core, []).append(cpu)
            found[node] = tuple(
                Core(
                    id=core,
                    threads=tuple(cpu.id for cpu in own),
                    mask=sum(1 << cpu.id for cpu in own),
                    l3=own[0].l3,
                    kind=own[0].kind,
                )
                for core, own in sorted(threads.items())
            )
        return found

    @cached_property
    def caches_by_node(self) -> Mapping[int, int]:
        """How many L3 caches the cores of every node use; those of which none is known count as one."""
        return {node: len({core.l3 for core in cores}) for node, cores in self.cores_by_node.items()}

    @cached_property
    def cpus_by_kind(self) -> Mapping[CoreKind, CpuSet]:
        """Online CPUs by the kind of their cores; empty where all cores are of one kind."""
        kinds = {cpu.kind for cpu in self.cpus if cpu.kind is not None}
        return {kind: CpuSet(cpu.id for cpu in self.cpus if cpu.kind is kind) for kind in CoreKind if kind in kinds}

    @cached_property
    def remoteness(self) -> Mapping[int, Mapping[int, float]]:
        """For each pair of nodes both directions' distances added, local distances being 0 and one local distance 1.

        A pair of unknown distance counts as the farthest known pair, and as local when nothing is known.
        """
        known = [value for node in self.nodes for other, value in node.distances.items() if other != node.id]
        farthest = max(known, default=LOCAL_DISTANCE)
        one_way = {
            node.id: {other.id: node.distances.get(other.id, farthest) / LOCAL_DISTANCE - 1 for other in self.nodes}
            for node in self.nodes
        }
        return {
            a: {b: 0.0 if a == b else there + one_way[b][a] for b, there in row.items()} for a, row in one_way.items()
        }

    @cached_property
    def nearest(self) -> Mapping[int, Sequence[float]]:
        """For each node by number of others: the sum of remoteness to the so many nearest."""
        return {
            a: [0.0, *accumulate(sorted(there for b, there in row.items() if b != a))]
            for a, row in self.remoteness.items()
        }

    @cached_property
    def least_remoteness(self) -> Sequence[float]:
        """By number of nodes: no set of so many has a smaller sum of remoteness over its pairs."""
        rows = list(self.nearest.values())
        # Each node of a set has at least the distances to as many nearest others as the set has.
        return [0.0, *(sum(sorted(row[others] for row in rows)[: others + 1]) / 2 for others in range(len(rows)))]

    @cached_property
    def alike(self) -> Mapping[int, int]:
        """For each node the lowest one that has the same distances to all others."""
        first: dict[int, int] = {}
        by_row: dict[tuple[float, ...], list[int]] = {}
        for a, row in self.remoteness.items():
            known = by_row.setdefault(tuple(sorted(row.values())), [])
            twin = next((b for b in known if all(row[x] == self.remoteness[b][x] for x in row if x not in (a, b))), a)
            first[a] = twin
            if twin == a:
                known.append(a)
        return first

    def cpus_of(self, nodes: NodeSet) -> CpuSet:
        """The online CPUs of nodes that the machine has."""
        return CpuSet(cpu for node in nodes for cpu in self.node_by_id[node].cpus)

    def nodes_of(self, cpus: CpuSet) -> NodeSet:
        """The nodes that own at least one of the CPUs."""
        return NodeSet(node.id for node in self.nodes if node.cpus & cpus)

    def distance(self, source: int, target: int) -> int | None:
        """The kernel's distance between two nodes, None when unknown."""
        return self.node_by_id[source].distances.get(target)
