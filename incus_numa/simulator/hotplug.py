"""A machine after some of it was plugged in or taken out. Pure. Called by `simulator`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from incus_numa.cpuset import CpuSet
from incus_numa.model.machine import LOCAL_DISTANCE, Machine, Node

_FAR = 40
"""How far memory is that was plugged in: on another board."""


def with_memory_node(machine: Machine, size_bytes: int) -> Machine:
    """The machine with one node more, which has memory and no CPUs."""
    new = max((node.id for node in machine.nodes), default=-1) + 1
    distances = {node.id: _FAR for node in machine.nodes} | {new: LOCAL_DISTANCE}
    old = tuple(replace(node, distances={**node.distances, new: _FAR}) for node in machine.nodes)
    node = Node(id=new, cpus=CpuSet(), memory_bytes=size_bytes, free_bytes=size_bytes, distances=distances)
    return replace(machine, nodes=(*old, node))


def with_memory(machine: Machine, node: int, size_bytes: int) -> Machine:
    """The machine with so much memory in a node, all of it free."""
    return replace(
        machine,
        nodes=tuple(
            replace(one, memory_bytes=size_bytes, free_bytes=size_bytes) if one.id == node else one
            for one in machine.nodes
        ),
    )


def without_node(machine: Machine, node: int) -> Machine:
    """The machine without a node, its CPUs and its memory."""
    gone = machine.node_by_id[node]
    left = tuple(replace(one, distances=_without(one.distances, node)) for one in machine.nodes if one.id != node)
    cpus = tuple(cpu for cpu in machine.cpus if cpu.id not in gone.cpus)
    return replace(machine, nodes=left, cpus=cpus, online=machine.online - gone.cpus)


def second_threads(machine: Machine) -> CpuSet:
    """All CPUs but the first of every core: those that go offline when SMT is switched off."""
    return CpuSet(cpu.id for cpu in machine.cpus if cpu.id != cpu.core)


def _without(distances: Mapping[int, int], node: int) -> dict[int, int]:
    return {other: distance for other, distance in distances.items() if other != node}
