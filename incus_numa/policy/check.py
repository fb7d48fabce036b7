"""What must hold for every plan, whatever made it. The daemon asks before it applies; tests ask always."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.plan import Placement, Plan
from incus_numa.model.snapshot import Snapshot
from incus_numa.policy.ledger import usable_cpus
from incus_numa.settings import PlacementSettings


def check_plan(plan: Plan, snapshot: Snapshot, settings: PlacementSettings) -> tuple[str, ...]:
    """Broken promises of a plan, one sentence each; empty when it is sound."""
    by_key = {instance.key: instance for instance in snapshot.instances}
    usable = usable_cpus(snapshot.machine, CpuSet.parse(settings.reserved_cpus))
    problems: list[str] = []
    for placement in plan.placements:
        instance = by_key.get(placement.key)
        if instance is None or not instance.managed:
            problems.append(f"{placement.key}: placed, but not a managed instance of the snapshot")
            continue
        problems.extend(
            f"{placement.key}: {what}"
            for what in _check_placement(
                placement, snapshot, instance.demand.pinned_cpus or _usable_in(usable, placement.nodes)
            )
        )
    return (*problems, *_check_exclusive(plan.placements))


def _check_exclusive(placements: Sequence[Placement]) -> Iterator[str]:
    """Exclusive CPUs that are not only their owner's."""
    once = several = 0
    for placement in placements:
        several |= once & placement.cpus.mask
        once |= placement.cpus.mask
    for owner in placements:
        if owner.exclusive and owner.cpus.mask & several:
            for other in placements:
                shared = owner.cpus & other.cpus
                if shared and other.key != owner.key:
                    yield f"{owner.key}: exclusive CPUs {shared} are {other.key}'s, too"


def _usable_in(usable: Mapping[int, CpuSet], nodes: NodeSet) -> CpuSet:
    return CpuSet(cpu for node in nodes if node in usable for cpu in usable[node])


def _check_placement(placement: Placement, snapshot: Snapshot, allowed: CpuSet) -> list[str]:
    machine = snapshot.machine
    problems = []
    if not placement.cpus:
        problems.append("has no CPUs")
    if not placement.nodes:
        problems.append("has no nodes")
    if not placement.nodes <= NodeSet(machine.node_by_id):
        problems.append(f"nodes {placement.nodes} are not all nodes of the machine")
    if not placement.cpus <= machine.online:
        problems.append(f"CPUs {placement.cpus} are not all online")
    if not placement.cpus <= allowed:
        problems.append(f"CPUs {placement.cpus} are not all allowed: usable CPUs of nodes {placement.nodes}")
    if placement.mems is not None and not (placement.mems and placement.mems <= machine.memory_nodes):
        problems.append(f"mems {placement.mems} are not all nodes with memory")
    if placement.mems is not None and not placement.mems <= placement.nodes:
        problems.append(f"mems {placement.mems} are not all in nodes {placement.nodes}")
    return problems
