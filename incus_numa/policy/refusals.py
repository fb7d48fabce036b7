"""Refusals, as values with the numbers that people need to do something about them."""

from __future__ import annotations

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance, Policy
from incus_numa.model.plan import Reason, Rejection
from incus_numa.policy.desk import Desk, memory_limit
from incus_numa.policy.ledger import Ledger
from incus_numa.quantities import render_bytes


def refuse(desk: Desk, instance: Instance) -> Rejection | None:
    """What keeps an instance from being placed at all, None when nothing does."""
    if instance.problem is not None:
        return Rejection(key=instance.key, reason=Reason.BAD_KEY, detail=instance.problem)
    pinned = instance.demand.pinned_cpus
    impossible = _not_exclusive(instance) if instance.demand.exclusive else None
    if impossible is not None:
        return Rejection(key=instance.key, reason=Reason.BAD_KEY, detail=f"user.numa.exclusive: {impossible}")
    if pinned is not None:
        cpus = pinned & desk.machine.online
        if not cpus:
            detail = f"limits.cpu asks for CPUs {pinned}, none of which is online ({desk.machine.online})"
            return Rejection(key=instance.key, reason=Reason.BAD_PIN, detail=detail)
        if not desk.machine.nodes_of(cpus):
            detail = f"limits.cpu asks for CPUs {pinned}, which belong to no node"
            return Rejection(key=instance.key, reason=Reason.BAD_PIN, detail=detail)
        return None
    return None if desk.empty.total_cpus else no_cpus(desk, instance)


def no_cpus(desk: Desk, instance: Instance) -> Rejection:
    """The refusal of an instance for which the machine has no usable CPU, or none that is not exclusive."""
    total = desk.empty.total_cpus
    detail = "the machine has no usable CPU: all are offline, isolated or reserved"
    if total:
        detail = f"all {total} usable CPUs of the machine are exclusive to other instances"
    return Rejection(key=instance.key, reason=Reason.NO_CPUS, detail=detail)


def too_big(desk: Desk, instance: Instance) -> Rejection:
    """The refusal of an instance whose memory or huge pages fit nowhere."""
    missing = _missing_hugepages(desk, instance)
    if missing is not None:
        return Rejection(key=instance.key, reason=Reason.NO_HUGEPAGES, detail=missing)
    rooms = _known_rooms(desk)
    most = max(rooms, key=lambda node: (rooms[node], -node), default=None)
    needed = render_bytes(desk.firm_need(instance).memory_bytes)
    detail = f"needs {needed}, all nodes together have {render_bytes(sum(rooms.values()))}"
    if most is not None:
        detail += f" uncommitted (most on node {most}: {render_bytes(rooms[most])})"
    return Rejection(key=instance.key, reason=Reason.NO_MEMORY, detail=detail)


def _missing_hugepages(desk: Desk, instance: Instance) -> str | None:
    for size, amount in desk.firm_need(instance).hugepages:
        rooms = desk.ledger.huge.get(size)
        if rooms is None or not rooms.holds(desk.ledger.nodes.mask, amount):
            left = {} if rooms is None else {node: rooms.left(node) or 0 for node in desk.ledger.nodes}
            detail = f"needs {render_bytes(amount)} of {render_bytes(size)} huge pages, all nodes together have "
            detail += f"{render_bytes(sum(left.values()))} uncommitted"
            most = max(left, key=lambda node: (left[node], -node), default=None)
            return detail if most is None else f"{detail} (most on node {most}: {render_bytes(left[most])})"
    return None


def not_aligned(instance: Instance, nodes: NodeSet) -> Rejection:
    """The refusal of an instance whose devices are elsewhere than the nodes that could hold it."""
    detail = (
        f"policy {instance.policy.value}, but its devices are on node{_s(len(instance.device_nodes))} "
        f"{instance.device_nodes} and it on node{_s(len(nodes))} {nodes}"
    )
    return Rejection(key=instance.key, reason=Reason.NOT_ALIGNED, detail=detail)


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


def not_one(desk: Desk, instance: Instance, width: int) -> str:
    """Why one node does not hold an instance that needs `width` nodes."""
    need, rooms = desk.firm_need(instance), _known_rooms(desk)
    detail = f"policy single-numa-node, but {need.cpus} vCPU{'s' if need.cpus != 1 else ''}"
    if need.memory_bytes:
        detail += f" and {render_bytes(need.memory_bytes)}"
    if instance.device_nodes:
        # Which nodes are the largest says nothing where one of them has to be taken.
        (node,) = instance.device_nodes
        detail += f" need {width} nodes: node {node} of its devices has "
        detail += f"{desk.ledger.cpu_count.get(node, 0)} usable CPUs"
        return detail + (f", {render_bytes(rooms[node])} uncommitted" if need.memory_bytes and node in rooms else "")
    detail += f" need {width} nodes: the largest has {max(desk.ledger.cpu_count.values())} usable CPUs"
    if need.memory_bytes and rooms:
        detail += f", the roomiest {render_bytes(max(rooms.values()))} uncommitted"
    return detail


def _known_rooms(desk: Desk) -> dict[int, int]:
    left = {node: desk.ledger.rooms.left(node) for node in desk.ledger.usable}
    return {node: room for node, room in left.items() if room is not None}


def _not_exclusive(instance: Instance) -> str | None:
    """What keeps an instance from having CPUs of its own, None when nothing does."""
    if instance.policy is Policy.NONE:
        return "policy none gives all CPUs of the machine, which cannot be exclusive; expected another policy"
    if instance.demand.pinned_cpus is not None:
        return "limits.cpu lists CPUs, which others may have, too; expected a number of CPUs in limits.cpu"
    if instance.demand.vcpus is None:
        return "expected a number of CPUs in limits.cpu: how many are to be exclusive"
    return None


def _s(count: int) -> str:
    return "s" if count != 1 else ""
