"""How much of an instance's memory is on its own nodes. Pure; lists, explanations and metrics tell it."""

from __future__ import annotations

from collections.abc import Mapping

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.machine import Machine
from incus_numa.model.snapshot import Observed


def home_of(observed: Observed, machine: Machine) -> NodeSet:
    """The nodes that an instance belongs on, or where nothing says it those of its CPUs; empty when unknown."""
    return observed.home or observed.given or machine.nodes_of(observed.cpus or CpuSet())


def locality(memory: Mapping[int, int] | None, home: NodeSet) -> float | None:
    """The part of memory (bytes by node) that is on these nodes; None when either is unknown or there is none."""
    total = sum(memory.values()) if memory and home else 0
    if memory is None or not total:
        return None
    return sum(size for node, size in memory.items() if node in home) / total
