"""The numbers of this moment, for metrics. Called by the live host, at most once a second however many ask."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from incus_numa.cpuset import CpuSet
from incus_numa.daemon.seen import Seen
from incus_numa.daemon.service import Service
from incus_numa.facts.locality import home_of, locality
from incus_numa.facts.memory import read_free
from incus_numa.model.machine import Machine
from incus_numa.model.sample import Rates
from incus_numa.policy.desk import open_desk
from incus_numa.policy.ledger import Commitment, usable_cpus
from incus_numa.policy.rebalance import measured as node_loads
from incus_numa.policy.rooms import bits
from incus_numa.web.protocol import Gauges, InstanceGauges, NodeGauges

_STATES = ("placed", "differs", "refused")


def take_gauges(service: Service) -> Gauges:
    """What is known now, asking nobody but the kernel. Instances are in the order of project and name."""
    reconciler, rates = service.reconciler, service.balancing.rates
    world, snapshot = reconciler.world, reconciler.world.snapshot()
    desk = open_desk(snapshot, world.placement, sorted(snapshot.instances, key=lambda one: one.key))
    measured = None if rates is None else node_loads.measure(desk)
    seen = sorted(world.all_seen(), key=lambda one: one.instance.key)
    managed = [one for one in seen if one.instance.managed]
    # What has ended since, or is not managed any more, is refused no longer.
    refused = {one.instance.key: reconciler.refused.get(one.instance.key) for one in managed}
    states = Counter(_state(one) if refused[one.instance.key] is None else "refused" for one in managed)
    return Gauges(
        nodes=_nodes(
            snapshot.machine,
            usable_cpus(snapshot.machine, CpuSet.parse(world.placement.reserved_cpus)),
            desk.ledger.entries.values(),
            {} if measured is None else measured.load,
            read_free(snapshot.machine, rates, Path(service.settings.host.sysfs)),
        ),
        instances=tuple(_instance(one, snapshot.machine, rates) for one in managed),
        states={state: states[state] for state in _STATES} | {"unmanaged": len(seen) - len(managed)},
        refused=Counter(why.value for why in refused.values() if why is not None),
        imbalance=None if measured is None else measured.imbalance,
        connected=service.connected,
    )


def _state(seen: Seen) -> str:
    """Whether an instance that is not refused has the CPUs that were decided for it, as far as that is known."""
    observed = seen.observed
    if observed.decided is None or seen.problem is not None:
        return "differs"
    wanted = observed.decided.cpus
    return "placed" if wanted is None or observed.cpus in (None, wanted) else "differs"


def _nodes(
    machine: Machine,
    usable: Mapping[int, CpuSet],
    entries: Iterable[Commitment],
    loads: Mapping[int, float],
    free: Mapping[int, int],
) -> dict[int, NodeGauges]:
    weights, sizes = defaultdict[int, float](float), defaultdict[int, float](float)
    for entry in entries:
        weights[entry.nodes] += entry.weight
        sizes[entry.nodes] += entry.memory_bytes
    counts = {node: len(cpus) for node, cpus in usable.items()}
    vcpus = _spread(weights, counts)
    # Memory is spread by memory, or a small node beside a large one would look too full.
    memory = _spread(sizes, {node.id: node.memory_bytes or 0 for node in machine.nodes})
    return {
        node.id: NodeGauges(
            cpus=len(node.cpus),
            usable_cpus=counts[node.id],
            committed_vcpus=vcpus[node.id],
            load=loads.get(node.id),
            memory_bytes=node.memory_bytes,
            free_bytes=free.get(node.id, node.free_bytes),
            committed_bytes=round(memory[node.id]),
            reserved_bytes=node.reserved_bytes,
        )
        for node in machine.nodes
    }


def _spread(amounts: Mapping[int, float], sizes: Mapping[int, int]) -> dict[int, float]:
    """What comes to each node of amounts by set of nodes, spread by the nodes' sizes; evenly where all have none."""
    parts = dict.fromkeys(sizes, 0.0)
    for mask, amount in amounts.items():
        nodes = [node for node in bits(mask) if node in sizes]
        total = sum(sizes[node] for node in nodes)
        for node in nodes:
            parts[node] += amount * sizes[node] / total if total else amount / len(nodes)
    return parts


def _instance(seen: Seen, machine: Machine, rates: Rates | None) -> InstanceGauges:
    key, observed = seen.instance.key, seen.observed
    own = None if rates is None else rates.instances.get(key)
    home = home_of(observed, machine)
    return InstanceGauges(
        key=key,
        nodes=len(home),
        load_cpus=None if own is None else own.used_cpus,
        locality=locality(observed.memory, home),
    )
