"""From a snapshot to a plan. `plan` is the only entry point; the daemon, `plan` and `rebalance` call it.

What an instance has is kept while it is legal and as narrow as possible, so adding an instance never moves another and
planning twice changes nothing. The server's own choice at start is kept only where it costs no more than ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Instance, InstanceKey, MemoryMode, Policy
from incus_numa.model.machine import Machine
from incus_numa.model.plan import Placement, Plan, Reason, Rejection
from incus_numa.model.snapshot import NOTHING, Observed, Snapshot
from incus_numa.policy import candidates, cpus, memory, scoring
from incus_numa.policy.candidates import Candidate, Need
from incus_numa.policy.cpus import CpuWish
from incus_numa.policy.ledger import Ledger, usable_cpus
from incus_numa.quantities import render_bytes
from incus_numa.settings import PlacementSettings


def plan(snapshot: Snapshot, settings: PlacementSettings, *, only: frozenset[InstanceKey] | None = None) -> Plan:
    """Placements and rejections for the managed instances (those in `only`, if given; the rest stay as they are).

    Pure and repeatable: the order of `snapshot.instances` never matters.
    """
    machine = snapshot.machine
    ledger = Ledger(machine, usable_cpus(machine, CpuSet.parse(settings.reserved_cpus)))
    instances = sorted(snapshot.instances, key=lambda instance: instance.key)
    desk = _Desk(snapshot=snapshot, settings=settings, ledger=ledger)
    for instance in instances:
        _commit_as_is(desk, instance)
    judged = [one for one in instances if one.managed and (only is None or one.key in only)]
    answers: dict[InstanceKey, Placement | Rejection] = {}
    waiting: list[Instance] = []
    for instance in judged:
        answer = _refuse(desk, instance) or _pinned(desk, instance) or _kept(desk, instance)
        if answer is not None:
            answers[instance.key] = answer
        else:
            ledger.release(instance.key)
            waiting.append(instance)
    for instance in sorted(waiting, key=lambda one: _largest_first(desk, one)):
        answers[instance.key] = _place(desk, instance)
    return _assemble(desk, answers, judged)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Desk:
    """What every step of one plan needs."""

    snapshot: Snapshot
    settings: PlacementSettings
    ledger: Ledger

    @property
    def machine(self) -> Machine:
        return self.snapshot.machine

    def observed(self, instance: Instance) -> Observed:
        return self.snapshot.observed.get(instance.key, NOTHING)

    def weight(self, instance: Instance) -> float:
        """Committed weight, or the measured load where that is known and larger."""
        measured = self.snapshot.load.cpus_by_instance.get(instance.key, 0.0)
        return max(self.need(instance).weight, measured)

    def need(self, instance: Instance) -> Need:
        """The demand, capped at the whole machine."""
        demand = instance.demand
        asked = demand.vcpus or 1
        capped = min(asked, self.ledger.total_cpus)
        matters = instance.memory is not MemoryMode.NONE
        return Need(
            cpus=capped,
            weight=demand.weight * capped / asked,
            memory_bytes=(demand.memory_bytes or 0) if matters else 0,
        )


def _commit_as_is(desk: _Desk, instance: Instance) -> None:
    """Count an instance where it is now; where nothing is known, over the whole machine."""
    observed = desk.observed(instance)
    pinned, decided = instance.demand.pinned_cpus, observed.decided
    nodes: NodeSet | None
    cpu_set: CpuSet | None
    if pinned is not None:
        nodes, cpu_set = desk.machine.nodes_of(pinned), pinned
    elif decided is not None:
        nodes, cpu_set = decided.nodes, decided.cpus or observed.cpus
    else:
        cpu_set = observed.cpus
        nodes = observed.nodes or desk.machine.nodes_of(cpu_set or CpuSet())
    desk.ledger.commit(instance, desk.weight(instance), nodes or NodeSet(desk.ledger.usable), cpu_set)


def _refuse(desk: _Desk, instance: Instance) -> Rejection | None:
    if instance.problem is not None:
        key, what = instance.problem
        return Rejection(key=instance.key, reason=Reason.BAD_KEY, detail=f"{key}: {what}")
    if not desk.ledger.total_cpus:
        detail = "the machine has no usable CPU: all are offline, isolated or reserved"
        return Rejection(key=instance.key, reason=Reason.NO_CPUS, detail=detail)
    return None


def _pinned(desk: _Desk, instance: Instance) -> Placement | Rejection | None:
    """An explicit CPU list is respected: its nodes are recorded and its memory follows the memory rule."""
    pinned = instance.demand.pinned_cpus
    if pinned is None:
        return None
    cpu_set = pinned & desk.machine.online
    if not cpu_set:
        detail = f"limits.cpu asks for CPUs {pinned}, none of which is online ({desk.machine.online})"
        return Rejection(key=instance.key, reason=Reason.BAD_PIN, detail=detail)
    nodes = desk.machine.nodes_of(cpu_set)
    if not nodes:
        detail = f"limits.cpu asks for CPUs {pinned}, which belong to no node"
        return Rejection(key=instance.key, reason=Reason.BAD_PIN, detail=detail)
    reason = f"limits.cpu lists CPUs {pinned}: respected, on node{'s' if len(nodes) > 1 else ''} {nodes}"
    return _placement(desk, instance, nodes, cpu_set, reason)


def _kept(desk: _Desk, instance: Instance) -> Placement | None:
    """The placement it has, if that is legal and no wider than needed."""
    decided, need = desk.observed(instance).decided, desk.need(instance)
    if decided is None or instance.policy is Policy.NONE or not decided.nodes <= NodeSet(desk.ledger.usable):
        return None
    nodes = decided.nodes
    desk.ledger.release(instance.key)
    if not _may_stay(desk, instance, need, nodes):
        return None
    count = _cpu_count(desk, instance, nodes)
    cpu_set = decided.cpus or CpuSet()
    if not cpus.legal(desk.ledger, nodes, cpu_set, count):
        wish = CpuWish(count=count, weight=need.weight, pack=desk.settings.smt == "pack", has=cpu_set)
        cpu_set = cpus.choose(desk.ledger, nodes, wish)
    desk.ledger.commit(instance, desk.weight(instance), nodes, cpu_set)
    return _placement(desk, instance, nodes, cpu_set, f"kept: node{_s(nodes)} {nodes} still hold it")


def _may_stay(desk: _Desk, instance: Instance, need: Need, nodes: NodeSet) -> bool:
    ledger = desk.ledger
    if sum(ledger.cpu_count[node] for node in nodes) < need.cpus:
        return False
    if not instance.demand.memory_is_usage and not candidates.fits(ledger, need, nodes):
        return False
    if _forbidden_width(desk, instance, need, len(nodes)):
        return False
    if len(nodes) <= candidates.minimum_width(ledger, need):
        return True
    narrower = candidates.best(ledger, need, desk.settings)
    return narrower is None or len(narrower.nodes) >= len(nodes)


def _place(desk: _Desk, instance: Instance) -> Placement | Rejection:
    """Choose nodes, then CPUs inside them, and commit them; or refuse and count it where it is."""
    need = desk.need(instance)
    if instance.policy is Policy.NONE:
        found: Candidate | None = Candidate(nodes=_cpu_nodes(desk), cost=0.0)
    else:
        found = candidates.best(desk.ledger, need, desk.settings)
    if found is None:
        return _rejected(desk, instance, _too_big(desk, need, instance))
    forbidden = _forbidden_width(desk, instance, need, len(found.nodes))
    if forbidden is not None:
        return _rejected(desk, instance, forbidden)
    observed = desk.observed(instance)
    nodes, why = _prefer_what_it_has(desk, need, found, observed)
    count = _cpu_count(desk, instance, nodes)
    wish = CpuWish(count=count, weight=need.weight, pack=desk.settings.smt == "pack", has=observed.cpus or CpuSet())
    cpu_set = cpus.choose(desk.ledger, nodes, wish)
    has = None if observed.decided else observed.cpus
    if (
        has
        and not wish.pack
        and cpus.legal(desk.ledger, nodes, has, count)
        and cpus.burden(desk.ledger, has, need.weight) <= cpus.burden(desk.ledger, cpu_set, need.weight)
    ):
        # The server's own choice is kept where it is as good, so that nothing is written without need.
        cpu_set = has
    before = {node: desk.ledger.node_load[node] for node in nodes}
    desk.ledger.commit(instance, desk.weight(instance), nodes, cpu_set)
    return _placement(desk, instance, nodes, cpu_set, _why(desk, need, nodes, before, why))


def _prefer_what_it_has(desk: _Desk, need: Need, found: Candidate, observed: Observed) -> tuple[NodeSet, str]:
    has = observed.nodes
    if has and len(has) == len(found.nodes) and has != found.nodes and has <= NodeSet(desk.ledger.usable):
        same = candidates.cost(desk.ledger, need, has, desk.settings) <= found.cost
        if same and candidates.fits(desk.ledger, need, has):
            return has, "what it has costs no more than any other"
    return found.nodes, "least loaded and nearest"


def _cpu_nodes(desk: _Desk) -> NodeSet:
    return NodeSet(node for node, count in desk.ledger.cpu_count.items() if count)


def _cpu_count(desk: _Desk, instance: Instance, nodes: NodeSet) -> int:
    """CPUs to give: the demand, or all usable ones of the nodes without a CPU limit or under policy none."""
    if instance.demand.vcpus is None or instance.policy is Policy.NONE:
        return sum(desk.ledger.cpu_count[node] for node in nodes)
    return desk.need(instance).cpus


def _forbidden_width(desk: _Desk, instance: Instance, need: Need, width: int) -> Rejection | None:
    """What the kubelet's stricter policies say about a width."""
    if instance.policy is Policy.SINGLE_NUMA_NODE and width > 1:
        largest = max(desk.ledger.cpu_count.values())
        detail = (
            f"policy single-numa-node, but {need.cpus} vCPUs and {render_bytes(need.memory_bytes)} need {width} nodes "
            f"(the largest has {largest} usable CPUs)"
        )
        return Rejection(key=instance.key, reason=Reason.NOT_ONE_NODE, detail=detail)
    if instance.policy is Policy.RESTRICTED:
        empty = Ledger(desk.machine, desk.ledger.usable)
        possible = candidates.best(empty, need, desk.settings)
        if possible is not None and width > len(possible.nodes):
            detail = (
                f"policy restricted, but only {width} nodes have room for it now; "
                f"{len(possible.nodes)} would do on an empty machine"
            )
            return Rejection(key=instance.key, reason=Reason.NOT_NARROWEST, detail=detail)
    return None


def _too_big(desk: _Desk, need: Need, instance: Instance) -> Rejection:
    left = {node: desk.ledger.memory_left(node) for node in desk.ledger.usable}
    rooms = {node: max(0, room) for node, room in left.items() if room is not None}
    most = max(rooms, key=lambda node: (rooms[node], -node), default=None)
    detail = f"needs {render_bytes(need.memory_bytes)}, all nodes together have {render_bytes(sum(rooms.values()))}"
    if most is not None:
        detail += f" uncommitted (most on node {most}: {render_bytes(rooms[most])})"
    return Rejection(key=instance.key, reason=Reason.NO_MEMORY, detail=detail)


def _rejected(desk: _Desk, instance: Instance, rejection: Rejection) -> Rejection:
    _commit_as_is(desk, instance)
    return rejection


def _why(desk: _Desk, need: Need, nodes: NodeSet, before: Mapping[int, float], why: str) -> str:
    count = len(_cpu_nodes(desk))
    text = f"{len(nodes)} of {count} node{'s' if count != 1 else ''} hold {need.cpus} vCPU"
    text += "s" if need.cpus != 1 else ""
    if need.memory_bytes:
        text += f" and {render_bytes(need.memory_bytes)}"
    loads = [before[node] for node in nodes if desk.ledger.cpu_count[node]]
    text += f"; {why}: load before at most {max(loads, default=0.0):.2f}"
    distance = scoring.mean_distance(desk.machine, nodes)
    return text + (f", mean distance {distance:.0f}" if distance is not None else "")


def _placement(desk: _Desk, instance: Instance, nodes: NodeSet, cpu_set: CpuSet, reason: str) -> Placement:
    decided = desk.observed(instance).decided
    return Placement(
        key=instance.key,
        nodes=nodes,
        cpus=cpu_set,
        mems=memory.mems_for(desk.machine, nodes, instance.memory),
        moved=decided is not None and decided.nodes != nodes,
        reason=reason,
    )


def _largest_first(desk: _Desk, instance: Instance) -> tuple[int, float, int, InstanceKey]:
    need = desk.need(instance)
    return -candidates.minimum_width(desk.ledger, need), -need.weight, -need.memory_bytes, instance.key


def _assemble(desk: _Desk, answers: Mapping[InstanceKey, Placement | Rejection], judged: list[Instance]) -> Plan:
    warnings = [
        f"{one.key}: limits.cpu asks for {one.demand.vcpus} CPUs, the machine has {desk.ledger.total_cpus} usable: "
        "it gets the whole machine"
        for one in judged
        if (one.demand.vcpus or 0) > desk.ledger.total_cpus and isinstance(answers[one.key], Placement)
    ]
    ordered = [answers[key] for key in sorted(answers)]
    return Plan(
        placements=tuple(one for one in ordered if isinstance(one, Placement)),
        rejections=tuple(one for one in ordered if isinstance(one, Rejection)),
        node_load={
            node: round(load, 9) + 0.0 for node, load in desk.ledger.node_load.items() if desk.ledger.cpu_count[node]
        },
        warnings=tuple(warnings),
    )


def _s(nodes: NodeSet) -> str:
    return "s" if len(nodes) > 1 else ""
