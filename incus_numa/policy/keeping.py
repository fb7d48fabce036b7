"""Which instances may stay where we put them. Whether one may never depends on new instances.

The memory that counts here is that of limits of managed instances that we placed; others' memory, and use without a
limit, keep new instances away but do not drive out those that are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Instance, InstanceKey, Policy
from incus_numa.model.plan import Placement
from incus_numa.policy import candidates, cpus, reasons
from incus_numa.policy.candidates import Candidate
from incus_numa.policy.desk import Desk, by_memory, memory_limit
from incus_numa.policy.policies import RULES
from incus_numa.policy.rooms import Rooms

NARROWER = 4
"""What part of the work that choosing nodes may take is spent to see whether fewer would do."""


class Keepers:
    """Memory limits of the instances that stay, to see whether their nodes still hold all of them."""

    def __init__(self, desk: Desk, others: Iterable[Instance]) -> None:
        self._desk = desk
        self._others = others

    @cached_property
    def _rooms(self) -> Mapping[int | None, Rooms]:
        """By page size; None is ordinary memory."""
        own, every = self._desk.empty.fork(), self._desk.ledger.nodes
        rooms: dict[int | None, Rooms] = {None: own.rooms}
        rooms.update((page, huge) for page, huge in own.huge.items())
        for instance in self._others:
            decided = self._desk.observed(instance).decided
            if instance.managed and instance.demand.pinned_cpus is None and decided is not None:
                for page, amount in _amounts(instance):
                    if page in rooms:
                        rooms[page].add(decided.nodes.mask & every.mask, amount)
        return rooms

    def take(self, instance: Instance, nodes: NodeSet) -> bool:
        """Count the limits of an instance on its nodes if these hold them beside those that stay; else say False."""
        amounts = _amounts(instance)
        if not all(page in self._rooms and self._rooms[page].holds(nodes.mask, amount) for page, amount in amounts):
            return False
        for page, amount in amounts:
            self._rooms[page].add(nodes.mask, amount)
        return True

    def stay(self, instances: Iterable[Instance]) -> set[InstanceKey]:
        """Those of the instances that may stay on the nodes we gave them."""
        staying: set[InstanceKey] = set()
        for instance in sorted(instances, key=by_memory):
            decided = self._desk.observed(instance).decided
            if decided is None or not _is_legal(self._desk, instance, decided.nodes):
                continue
            if self.take(instance, decided.nodes):
                staying.add(instance.key)
        return staying


def _amounts(instance: Instance) -> list[tuple[int | None, int]]:
    """Bytes that the instance needs its nodes for, by page size; nothing under policy none."""
    if instance.policy is Policy.NONE:
        return []
    size = memory_limit(instance)
    found: list[tuple[int | None, int]] = [(None, size)] if size else []
    return found + [(page, amount) for page, amount in instance.demand.hugepages.items() if amount]


def _is_legal(desk: Desk, instance: Instance, nodes: NodeSet) -> bool:
    """Whether nodes and policy allow the placement, whatever else is on the nodes."""
    ledger, need = desk.ledger, desk.firm_need(instance)
    if not nodes <= ledger.nodes or instance.policy is Policy.NONE:
        return nodes == desk.empty.cpu_nodes and instance.policy is Policy.NONE
    if ledger.cpus_of(nodes) < max(1, need.cpus):
        return False
    return RULES[instance.policy].forbids(desk, instance, nodes) is None


def keep(desk: Desk, instance: Instance) -> Placement:
    """The placement it has, with other CPUs only where those it has are no longer legal."""
    decided = desk.observed(instance).decided
    nodes = decided.nodes if decided else NodeSet()
    cpu_set = (decided.cpus if decided else None) or CpuSet()
    if not cpus.legal(desk.ledger, nodes, cpu_set, desk.cpu_count(instance, nodes), cores=instance.demand.cores):
        desk.ledger.release(instance.key)
        cpu_set = cpus.choose(desk.ledger, nodes, desk.wish(instance, nodes, cpu_set))
        desk.commit(instance, nodes, cpu_set)
    return desk.placement(instance, nodes, cpu_set, reasons.kept(nodes))


def narrower(desk: Desk, instance: Instance, nodes: NodeSet) -> Candidate | None:
    """The best narrower set that holds the instance now and that its policy allows, None when there is none.

    Those that may not be moved stay as wide as they are, and so do those whose use of memory, which no limit holds,
    may have made them wide, unless they ask for other CPUs than before.
    """
    need = desk.need(instance)
    decided = desk.observed(instance).decided
    if decided is not None and decided.nodes == nodes:
        same = decided.cpus is None or len(decided.cpus) == desk.cpu_count(instance, nodes)
        if not instance.movable or (instance.demand.memory_is_usage and same):
            return None
    if instance.policy is Policy.NONE or len(nodes) <= desk.ledger.least_nodes(need.cpus):
        return None
    entry = desk.ledger.release(instance.key)
    found = None
    if len(nodes) > candidates.minimum_width(desk.ledger, need):
        need = replace(need, most_width=len(nodes) - 1, limit=need.limit // NARROWER)
        found = RULES[instance.policy].find(desk, instance, need)
    if entry is not None:
        desk.ledger.commit(instance.key, entry)
    return found if isinstance(found, Candidate) and len(found.nodes) < len(nodes) else None
