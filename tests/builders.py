"""Values for tests in one line each: only what a test is about is written there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Demand, Instance, InstanceKey
from incus_numa.model.load import Load
from incus_numa.model.machine import CoreKind, Cpu, Machine, Node
from incus_numa.model.plan import Plan
from incus_numa.model.snapshot import Decided, Observed, Snapshot
from incus_numa.topology import document

GIB = 1 << 30
SMALL_PAGE, LARGE_PAGE = 2 << 20, 1 << 30
"""Sizes of huge pages, in bytes."""

MACHINES = Path(__file__).parent / "machines"
"""Machine documents of real shapes, named shape-quirk."""


def machine(
    *,
    nodes: int = 4,
    cpus_per_node: int = 4,
    threads: int = 2,
    memory_bytes: int | None = 32 * GIB,
    nodes_per_socket: int = 2,
    isolated: str = "",
    hugepages: Mapping[int, int] | None = None,
    reserved_bytes: int = 0,
    efficiency_cpus: int = 0,
) -> Machine:
    """A regular machine: CPU ids count up through the nodes, siblings are adjacent, one L3 per node.

    Nodes of one socket are 12 apart, others 32; a quarter of the memory is in use. Each node has the same huge pages
    and reservation. With `efficiency_cpus` the last so many CPUs of each node are on efficiency cores, all others on
    performance cores.
    """
    slow = range(cpus_per_node - efficiency_cpus, cpus_per_node)
    cpus = tuple(
        Cpu(
            id=cpu,
            node=cpu // cpus_per_node,
            socket=cpu // cpus_per_node // nodes_per_socket,
            core=cpu - cpu % cpus_per_node % threads,
            l3=cpu - cpu % cpus_per_node,
            kind=None if not slow else CoreKind.EFFICIENCY if cpu % cpus_per_node in slow else CoreKind.PERFORMANCE,
        )
        for cpu in range(nodes * cpus_per_node)
    )
    return Machine(
        name=f"{nodes}n{nodes * cpus_per_node}t",
        nodes=tuple(
            Node(
                id=one,
                cpus=CpuSet(range(one * cpus_per_node, (one + 1) * cpus_per_node)),
                memory_bytes=memory_bytes,
                free_bytes=None if memory_bytes is None else memory_bytes * 3 // 4,
                distances={other: _distance(one, other, nodes_per_socket) for other in range(nodes)},
                hugepages=hugepages or {},
                reserved_bytes=reserved_bytes,
            )
            for one in range(nodes)
        ),
        cpus=cpus,
        online=CpuSet(cpu.id for cpu in cpus),
        isolated=CpuSet.parse(isolated),
    )


def _distance(one: int, other: int, nodes_per_socket: int) -> int:
    if one == other:
        return 10
    return 12 if one // nodes_per_socket == other // nodes_per_socket else 32


def load_machine(name: str) -> Machine:
    """The machine document `tests/machines/NAME.json`."""
    return document.parse_machine((MACHINES / f"{name}.json").read_bytes())


def instance(
    name: str,
    *,
    vcpus: int | None = None,
    memory_bytes: int | None = None,
    managed: bool = True,
    pinned: str | None = None,
    weight: float | None = None,
    memory_is_usage: bool = False,
    hugepages: Mapping[int, int] | None = None,
    cores: CoreKind | None = None,
    exclusive: bool = False,
    **more: Any,
) -> Instance:
    """A managed container of the default project. Its weight is its vCPUs unless given; `more` are Instance fields."""
    pin = None if pinned is None else CpuSet.parse(pinned)
    count = len(pin) if pin is not None else vcpus or 1
    demand = Demand(
        vcpus=vcpus,
        weight=float(count) if weight is None else weight,
        memory_bytes=memory_bytes,
        memory_is_usage=memory_is_usage,
        pinned_cpus=pin,
        hugepages=hugepages or {},
        cores=cores,
        exclusive=exclusive,
    )
    return Instance(key=InstanceKey("default", name), managed=managed, demand=demand, **more)


def snapshot(
    machine: Machine, *instances: Instance, observed: Mapping[InstanceKey, Observed] | None = None
) -> Snapshot:
    """A snapshot of running instances."""
    return Snapshot(machine=machine, instances=instances, observed=observed or {})


def busy(state: Snapshot, cpus: Mapping[str, float], other: Mapping[int, float] | None = None) -> Snapshot:
    """The snapshot with measured load: CPUs that instances of the default project keep busy, and other ones by node."""
    known = {InstanceKey("default", name): value for name, value in cpus.items()}
    return replace(state, load=Load(cpus_by_instance=known, other_by_node=other or {}))


def decided(nodes: str, cpus: str, mems: str = "") -> Observed:
    """An instance that has what we decided."""
    node_set, cpu_set = NodeSet.parse(nodes), CpuSet.parse(cpus)
    return Observed(
        nodes=node_set, cpus=cpu_set, mems=NodeSet.parse(mems), decided=Decided(nodes=node_set, cpus=cpu_set)
    )


def settled(plan: Plan) -> Mapping[InstanceKey, Observed]:
    """What is observed once a plan has been applied."""
    return {
        one.key: Observed(
            nodes=one.nodes,
            cpus=one.cpus,
            mems=one.mems or NodeSet(),
            decided=Decided(nodes=one.nodes, cpus=one.cpus),
        )
        for one in plan.placements
    }
