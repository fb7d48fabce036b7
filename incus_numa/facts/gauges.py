"""The numbers of this moment, for metrics."""

from __future__ import annotations

from collections import Counter

from incus_numa.cpuset import CpuSet
from incus_numa.daemon.seen import Seen
from incus_numa.daemon.service import Service
from incus_numa.model.sample import Rates
from incus_numa.policy.desk import Desk, open_desk
from incus_numa.policy.ledger import usable_cpus
from incus_numa.policy.rebalance import measured as node_loads
from incus_numa.web.protocol import Gauges, InstanceGauges, NodeGauges


def take_gauges(service: Service) -> Gauges:
    """What is known now, without asking anybody."""
    world, rates, reconciler = service.reconciler.world, service.balancing.rates, service.reconciler
    settings = world.placement
    snapshot = world.snapshot()
    desk = open_desk(snapshot, settings, sorted(snapshot.instances, key=lambda one: one.key))
    measured = node_loads.measure(desk) if rates is not None else None
    usable = usable_cpus(snapshot.machine, CpuSet.parse(settings.reserved_cpus))
    committed, memory = _committed(desk)
    seen = world.all_seen()
    managed = [one for one in seen if one.instance.managed]
    return Gauges(
        nodes={
            node.id: NodeGauges(
                cpus=len(node.cpus),
                usable_cpus=len(usable.get(node.id, ())),
                committed_vcpus=committed.get(node.id, 0.0),
                load=None if measured is None else measured.load.get(node.id),
                memory_bytes=node.memory_bytes,
                free_bytes=_free(rates, node.id, node.free_bytes),
                committed_bytes=round(memory.get(node.id, 0.0)),
                reserved_bytes=node.reserved_bytes,
            )
            for node in snapshot.machine.nodes
        },
        instances=tuple(_instance(one, rates) for one in sorted(managed, key=lambda one: one.instance.key)),
        states={
            "placed": len(managed) - len(reconciler.refused),
            "refused": len(reconciler.refused),
            "unmanaged": len(seen) - len(managed),
        },
        refused=Counter(reason.value for reason in reconciler.refused.values()),
        imbalance=None if measured is None else measured.imbalance,
        connected=service.connected,
    )


def _committed(desk: Desk) -> tuple[dict[int, float], dict[int, float]]:
    """vCPU weight and memory of every node: an instance's are spread over its nodes by their usable CPUs."""
    weights: dict[int, float] = {}
    memory: dict[int, float] = {}
    sizes = desk.ledger.cpu_count
    for entry in desk.ledger.entries.values():
        nodes = [node for node in sizes if entry.nodes >> node & 1]
        total = sum(sizes[node] for node in nodes)
        for node in nodes:
            part = sizes[node] / total if total else 1 / len(nodes)
            weights[node] = weights.get(node, 0.0) + entry.weight * part
            memory[node] = memory.get(node, 0.0) + entry.memory_bytes * part
    return weights, memory


def _instance(seen: Seen, rates: Rates | None) -> InstanceGauges:
    own = None if rates is None else rates.instances.get(seen.instance.key)
    return InstanceGauges(
        key=seen.instance.key,
        nodes=len(seen.observed.home or ()),
        load_cpus=None if own is None else own.used_cpus,
        locality=_locality(seen, None if own is None else own.memory_by_node),
    )


def _locality(seen: Seen, memory: object) -> float | None:
    by_node = memory if isinstance(memory, dict) else seen.observed.memory or {}
    total, home = sum(by_node.values()), seen.observed.home
    return sum(size for node, size in by_node.items() if node in home) / total if total and home else None


def _free(rates: Rates | None, node: int, seen_bytes: int | None) -> int | None:
    own = None if rates is None else rates.nodes.get(node)
    return seen_bytes if own is None or own.free_bytes is None else own.free_bytes
