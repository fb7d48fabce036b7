"""What every part of one plan works on: snapshot, settings, and the ledger that all instances are counted in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Instance, InstanceKey, MemoryMode, Policy
from incus_numa.model.load import Load
from incus_numa.model.machine import Machine
from incus_numa.model.plan import Placement, Proof
from incus_numa.model.snapshot import NOTHING, Observed, Snapshot
from incus_numa.policy import memory
from incus_numa.policy.cpus import CpuWish
from incus_numa.policy.field import SEARCH_LIMIT, Need
from incus_numa.policy.ledger import Commitment, Ledger, usable_cpus
from incus_numa.policy.ties import Ties
from incus_numa.settings import PlacementSettings

UNKNOWN = Load()
"""Nothing is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Desk:
    """The input of one plan, the ledger with every instance of the snapshot where it is now, and an empty ledger.

    `ties` know the groups of all instances that are counted in the ledger. `search_limit` is the work that choosing the
    nodes of one instance may take.
    """

    snapshot: Snapshot
    settings: PlacementSettings
    ledger: Ledger
    empty: Ledger
    ties: Ties
    search_limit: int = SEARCH_LIMIT

    @property
    def machine(self) -> Machine:
        """The host."""
        return self.snapshot.machine

    def observed(self, instance: Instance) -> Observed:
        """What the instance has now."""
        return self.snapshot.observed.get(instance.key, NOTHING)

    def need(self, instance: Instance) -> Need:
        """What nodes must hold now: use without a limit counts only until nodes are decided."""
        need = self.firm_need(instance)
        if not instance.demand.memory_is_usage or self.observed(instance).decided is not None:
            return need
        return replace(need, memory_bytes=instance.demand.memory_bytes or 0)

    def firm_need(self, instance: Instance) -> Need:
        """The demand, capped at the whole machine, of memory only what has a limit: the same at any time."""
        demand = instance.demand
        asked = demand.vcpus or 1
        capped = min(asked, self.ledger.total_cpus)
        return Need(
            cpus=capped,
            weight=demand.weight * capped / asked,
            memory_bytes=0 if demand.memory_is_usage else demand.memory_bytes or 0,
            hugepages=_hugepages(instance),
            pull=self.ties.pull(instance, self.ledger, self.settings),
            limit=self.search_limit,
        )

    def cpu_count(self, instance: Instance, nodes: NodeSet) -> int:
        """CPUs to give: the demand, or all usable ones of the nodes without a CPU limit or under policy none."""
        if instance.demand.vcpus is None or instance.policy is Policy.NONE:
            return self.ledger.cpus_of(nodes)
        return min(instance.demand.vcpus, self.ledger.total_cpus)

    def wish(self, instance: Instance, nodes: NodeSet, has: CpuSet | None, need: Need | None = None) -> CpuWish:
        """How to choose CPUs inside the nodes; `need` where it is known already."""
        return CpuWish(
            count=self.cpu_count(instance, nodes),
            weight=(need or self.firm_need(instance)).weight,
            pack=self.settings.smt == "pack",
            has=has or CpuSet(),
            cores=instance.demand.cores,
        )

    def commit(self, instance: Instance, nodes: NodeSet, cpus: CpuSet) -> None:
        """Count the instance on these nodes and CPUs."""
        self.ledger.commit(instance.key, self._commitment(instance, nodes.mask, cpus.mask))

    def commit_as_is(self, instance: Instance, *, exclusive: bool = True) -> None:
        """Count the instance where it is now; unless `exclusive`, others may have its CPUs, whatever it asks for."""
        entry = self.as_is(instance)
        self.ledger.commit(instance.key, entry if exclusive else entry._replace(exclusive=False))

    def as_is(self, instance: Instance) -> Commitment:
        """What the instance takes where it is now; where nothing is known, load of the whole machine and no memory."""
        observed = self.snapshot.observed.get(instance.key, NOTHING)
        pinned, decided = instance.demand.pinned_cpus, observed.decided
        if pinned is not None:
            cpus: CpuSet | None = pinned & self.machine.online
            nodes: NodeSet | None = self.machine.nodes_of(pinned)
        elif decided is not None:
            nodes, cpus = decided.nodes, decided.cpus or observed.cpus
        else:
            nodes, cpus = observed.given, observed.cpus
            if not nodes and cpus:
                nodes = self.machine.nodes_of(cpus)
        mask = nodes.mask & self.ledger.nodes.mask if nodes is not None else 0
        found = self._commitment(instance, mask or self.ledger.nodes.mask, 0 if cpus is None else cpus.mask)
        if decided is None and pinned is None and found.chosen:
            # What the server chose is neither kept for it nor kept free by others.
            found = found._replace(exclusive=False, firm=False, chosen=False)
        # Else one instance that is too large for the machine would keep all others out.
        return found if mask else found._replace(memory_bytes=0, hugepages=(), anywhere=True)

    def _commitment(self, instance: Instance, nodes: int, cpus: int) -> Commitment:
        demand, total = instance.demand, self.empty.total_cpus
        asked, weight = demand.vcpus or 1, demand.weight
        if asked > total:
            weight = weight * total / asked
        measured = self.snapshot.load.cpus_by_instance
        if measured:
            # Measured load counts where it is known and larger.
            weight = max(weight, measured.get(instance.key, 0.0))
        # One that asks for CPUs of its own which it cannot have, as a pin does, is refused and has none.
        counted = demand.vcpus is not None and demand.pinned_cpus is None
        chosen = instance.managed and instance.policy is not Policy.NONE and counted
        return Commitment(
            nodes,
            cpus,
            weight,
            demand.memory_bytes or 0,
            _hugepages(instance) if demand.hugepages else (),
            chosen and demand.exclusive and bool(cpus),
            chosen,
            demand.pinned_cpus is not None,
            instance.policy is Policy.NONE,
            instance.managed,
        )

    def placement(
        self, instance: Instance, nodes: NodeSet, cpus: CpuSet, reason: str, proof: Proof | None = None
    ) -> Placement:
        """The placement, with memory by the memory rule."""
        decided, mode = self.observed(instance).decided, instance.memory
        if instance.policy is Policy.NONE and mode is not MemoryMode.BIND:
            # The whole machine may be one node with CPUs, which says nothing about where memory belongs.
            mode = MemoryMode.NONE
        return Placement(
            key=instance.key,
            nodes=nodes,
            cpus=cpus,
            mems=memory.mems_for(self.machine, nodes, mode),
            moved=decided is not None and decided.nodes != nodes,
            reason=reason,
            exclusive=instance.demand.exclusive,
            proof=proof,
        )


class Standing:
    """All instances counted where they are, kept up to date one at a time, so that a plan need not count them anew."""

    def __init__(self, machine: Machine, settings: PlacementSettings) -> None:
        usable = usable_cpus(machine, CpuSet.parse(settings.reserved_cpus))
        self._machine = machine
        self._settings = settings
        self._ledger, self._empty = Ledger(machine, usable), Ledger(machine, usable)
        self._ties = Ties()
        for node in self._ledger.cpu_nodes:
            # Sums that were asked for once are kept up to date, and copied with the ledger.
            self._ledger.cpu_load(node)

    def see(self, instance: Instance, observed: Observed, load: Load = UNKNOWN) -> None:
        """Count an instance as it is now, and no longer as it was before."""
        key = instance.key
        alone = Snapshot(machine=self._machine, instances=(instance,), observed={key: observed}, load=load)
        desk = Desk(snapshot=alone, settings=self._settings, ledger=self._ledger, empty=self._empty, ties=self._ties)
        desk.commit_as_is(instance)
        self._ties.see(instance)

    def drop(self, key: InstanceKey) -> None:
        """Count an instance no longer; nothing happens if it was not counted."""
        self._ledger.release(key)
        self._ties.drop(key)

    def usable_by(self, key: InstanceKey, refused: Iterable[InstanceKey] = ()) -> CpuSet:
        """The CPUs that are neither isolated nor reserved nor exclusive to others; nothing is to those `refused`."""
        mask, entries = self._ledger.usable_mask, self._ledger.entries
        for entry in (entries[one] for one in (key, *refused) if one in entries):
            mask |= entry.cpus if entry.exclusive else 0
        return CpuSet.from_mask(mask & self._empty.usable_mask)

    def open_desk(self, snapshot: Snapshot) -> Desk:
        """A desk for some of the instances that are counted; what is decided at it does not change what is counted."""
        return Desk(
            snapshot=snapshot,
            settings=self._settings,
            ledger=self._ledger.fork(),
            empty=self._empty,
            ties=self._ties,
        )


def open_desk(snapshot: Snapshot, settings: PlacementSettings, instances: list[Instance]) -> Desk:
    """A desk with all instances, which are in order of their keys, counted where they are now."""
    usable = usable_cpus(snapshot.machine, CpuSet.parse(settings.reserved_cpus))
    ledger, empty = Ledger(snapshot.machine, usable), Ledger(snapshot.machine, usable)
    desk = Desk(snapshot=snapshot, settings=settings, ledger=ledger, empty=empty, ties=Ties(instances))
    desk.ledger.commit_all({instance.key: desk.as_is(instance) for instance in instances})
    return desk


def _hugepages(instance: Instance) -> tuple[tuple[int, int], ...]:
    return tuple(sorted((size, amount) for size, amount in instance.demand.hugepages.items() if amount))


def memory_limit(instance: Instance) -> int:
    """Bytes that the instance needs its nodes for. 0 under policy none and without a limit: use alone moves nobody."""
    demand = instance.demand
    return 0 if demand.memory_is_usage or instance.policy is Policy.NONE else demand.memory_bytes or 0


def by_memory(instance: Instance) -> tuple[int, InstanceKey]:
    """Order in which instances may stay on nodes that no longer hold all of them: the costliest to move first."""
    return -memory_limit(instance), instance.key
