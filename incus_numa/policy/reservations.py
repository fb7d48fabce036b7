"""What is kept for the host: whether CPUs and memory fit a machine, and the machine with memory set aside. Pure.

Called wherever a machine is read for planning: by the daemon, the one-shot commands, `plan` and `config check`. What
needs no machine, such as the sum, is checked with the settings themselves.
"""

from __future__ import annotations

from dataclasses import replace

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.machine import Machine, Node
from incus_numa.quantities import render_both
from incus_numa.settings import MemorySettings, PlacementSettings, Reservation


def check_reservations(memory: MemorySettings, machine: Machine) -> tuple[str, ...]:
    """Reservations that the machine cannot keep, one sentence each; empty when there are none.

    A node whose memory is unknown can keep any. With policy "none" nothing is kept, so nothing is wrong.
    """
    if memory.policy == "none":
        return ()
    problems = (_problem(one, machine) for one in memory.reserved)
    return tuple(problem for problem in problems if problem is not None)


def check_reserved_cpus(placement: PlacementSettings, machine: Machine, present: CpuSet | None) -> tuple[str, ...]:
    """Why CPUs cannot be kept for the host as the settings say, one sentence each. `present` ones may be offline."""
    try:
        reserved = CpuSet.parse(placement.reserved_cpus)
    except ValueError:
        # That it is no list was told with the settings.
        return ()
    if not machine.online:
        # Where the kernel's trees are missing nothing is known of its CPUs.
        return ()
    about, there = f"placement.reserved_cpus = {placement.reserved_cpus!r}", machine.online | (present or CpuSet())
    problems = []
    if reserved - there:
        problems.append(f"{about}: this machine has no CPUs {reserved - there}, only {there}")
    usable = machine.online - machine.isolated
    if usable and usable <= reserved:
        problems.append(f"{about}: that is every CPU that instances could have ({usable}); leave some of them out")
    return tuple(problems)


def reserve(machine: Machine, memory: MemorySettings) -> Machine:
    """The machine with the reservations set on its nodes; what does not fit is cut to what the node has."""
    kept = {one.node: one.size_bytes for one in memory.reserved} if memory.policy == "static" else {}
    if not kept and not any(node.reserved_bytes for node in machine.nodes):
        return machine
    return replace(
        machine,
        nodes=tuple(replace(node, reserved_bytes=_fitting(node, kept.get(node.id, 0))) for node in machine.nodes),
    )


def _problem(one: Reservation, machine: Machine) -> str | None:
    about = f"memory.reserved.{one.node} = {render_both(one.size_bytes)}"
    node = machine.node_by_id.get(one.node)
    if node is None:
        known = NodeSet(machine.node_by_id)
        return f"{about}: this machine has no node {one.node}, only {known or 'no nodes at all'}"
    if one.size_bytes == _fitting(node, one.size_bytes):
        return None
    if not node.memory_bytes:
        return f"{about}: node {node.id} has no memory, so none of it can be kept"
    most, pages = _most(node), sum(node.hugepages.values())
    less = f", {render_both(pages)} of it in huge pages" if pages else ""
    has = f"node {node.id} has {render_both(node.memory_bytes)} of memory{less}"
    return f"{about}: {has}; expected {render_both(most or 0)} or less"


def _fitting(node: Node, size_bytes: int) -> int:
    most = _most(node)
    return size_bytes if most is None else min(size_bytes, most)


def _most(node: Node) -> int | None:
    """What can be kept of a node: its memory without what is set aside for huge pages. None when unknown."""
    return None if node.memory_bytes is None else max(0, node.memory_bytes - sum(node.hugepages.values()))
