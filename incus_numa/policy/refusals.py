"""Refusals, as values with the numbers that people need to do something about them."""

from __future__ import annotations

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance, Policy
from incus_numa.model.plan import Reason, Rejection
from incus_numa.policy import candidates
from incus_numa.policy.desk import Desk, memory_limit
from incus_numa.policy.ledger import Ledger
from incus_numa.quantities import render_bytes


def refuse(desk: Desk, instance: Instance) -> Rejection | None:
    """What keeps an instance from being placed at all, None when nothing does."""
    if instance.problem is not None:
        key, what = instance.problem
        return Rejection(key=instance.key, reason=Reason.BAD_KEY, detail=f"{key}: {what}")
    pinned = instance.demand.pinned_cpus
    if pinned is not None:
        cpus = pinned & desk.machine.online
        if not cpus:
            detail = f"limits.cpu asks for CPUs {pinned}, none of which is online ({desk.machine.online})"
            return Rejection(key=instance.key, reason=Reason.BAD_PIN, detail=detail)
        if not desk.machine.nodes_of(cpus):
            detail = f"limits.cpu asks for CPUs {pinned}, which belong to no node"
            return Rejection(key=instance.key, reason=Reason.BAD_PIN, detail=detail)
        return None
    if not desk.ledger.total_cpus:
        detail = "the machine has no usable CPU: all are offline, isolated or reserved"
        return Rejection(key=instance.key, reason=Reason.NO_CPUS, detail=detail)
    return None


def forbidden_width(desk: Desk, instance: Instance, width: int) -> Rejection | None:
    """What the kubelet's stricter policies say about a number of nodes, None when they allow it."""
    if instance.policy is Policy.SINGLE_NUMA_NODE and width > 1:
        return Rejection(key=instance.key, reason=Reason.NOT_ONE_NODE, detail=_not_one(desk, instance, width))
    if instance.policy is Policy.RESTRICTED:
        need = desk.firm_need(instance)
        if width <= candidates.minimum_width(desk.empty, need):
            return None
        possible = candidates.best(desk.empty, need, desk.settings)
        if possible is not None and width > len(possible.nodes):
            detail = (
                f"policy restricted, but only {width} nodes have room for it now; "
                f"{len(possible.nodes)} would do on an empty machine"
            )
            return Rejection(key=instance.key, reason=Reason.NOT_NARROWEST, detail=detail)
    return None


def too_big(desk: Desk, instance: Instance) -> Rejection:
    """The refusal of an instance whose memory fits nowhere."""
    rooms = _known_rooms(desk)
    most = max(rooms, key=lambda node: (rooms[node], -node), default=None)
    needed = render_bytes(desk.firm_need(instance).memory_bytes)
    detail = f"needs {needed}, all nodes together have {render_bytes(sum(rooms.values()))}"
    if most is not None:
        detail += f" uncommitted (most on node {most}: {render_bytes(rooms[most])})"
    return Rejection(key=instance.key, reason=Reason.NO_MEMORY, detail=detail)


def lacking_memory(ledger: Ledger, instance: Instance, nodes: NodeSet) -> str | None:
    """Why given nodes do not hold the memory limit of an instance beside all others, None when they do."""
    size = memory_limit(instance)
    entry = ledger.release(instance.key)
    holds = ledger.rooms.holds(nodes.mask, size)
    left = 0 if holds else sum(ledger.rooms.left(node) or 0 for node in nodes)
    if entry is not None:
        ledger.commit(instance.key, entry)
    if holds:
        return None
    what = f"nodes {nodes} have" if len(nodes) > 1 else f"node {nodes} has"
    return f"its limit is {render_bytes(size)}, {what} {render_bytes(left)} uncommitted"


def _not_one(desk: Desk, instance: Instance, width: int) -> str:
    need, rooms = desk.firm_need(instance), _known_rooms(desk)
    detail = f"policy single-numa-node, but {need.cpus} vCPU{'s' if need.cpus != 1 else ''}"
    if need.memory_bytes:
        detail += f" and {render_bytes(need.memory_bytes)}"
    detail += f" need {width} nodes: the largest has {max(desk.ledger.cpu_count.values())} usable CPUs"
    if need.memory_bytes and rooms:
        detail += f", the roomiest {render_bytes(max(rooms.values()))} uncommitted"
    return detail


def _known_rooms(desk: Desk) -> dict[int, int]:
    left = {node: desk.ledger.rooms.left(node) for node in desk.ledger.usable}
    return {node: room for node, room in left.items() if room is not None}
