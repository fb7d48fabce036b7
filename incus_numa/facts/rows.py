"""Instances and nodes as rows of a table."""

from __future__ import annotations

from typing import Any

from incus_numa.daemon.seen import Seen
from incus_numa.facts.survey import Survey
from incus_numa.facts.words import rounded
from incus_numa.model.plan import Placement
from incus_numa.policy.steps import really_bound

Row = dict[str, Any]


def instance_rows(found: Survey, project: str | None = None) -> list[Row]:
    """One row per running instance; `state` is placed, differs, refused or unmanaged.

    `mems` is None where memory may be anywhere, as after it was unbound, when `cpuset.mems` has all nodes.
    `exclusive` is true where nobody else is to have its CPUs. `load_cpus` is measured load, `locality` the part of its
    memory that is on its nodes.
    """
    return [
        {
            "project": seen.instance.key.project,
            "name": seen.instance.key.name,
            "type": seen.instance.type.value,
            "vcpus": seen.instance.demand.vcpus,
            "memory_bytes": seen.instance.demand.memory_bytes,
            "nodes": str(found.nodes_of(seen)) or None,
            "cpus": str(seen.observed.cpus) if seen.observed.cpus else None,
            "mems": str(really_bound(seen.observed.mems, found.machine.memory_nodes)) or None,
            "state": found.state(seen),
            "group": seen.instance.group if seen.instance.managed else None,
            "exclusive": has_own_cpus(found, seen),
            "load_cpus": rounded(found.load_cpus(seen.instance.key)),
            "locality": rounded(found.locality(seen)),
        }
        for seen in found.seen
        if project in (None, seen.instance.key.project)
    ]


def has_own_cpus(found: Survey, seen: Seen) -> bool:
    """Whether the instance was given exclusive CPUs."""
    answer = found.answer(seen.instance.key)
    return isinstance(answer, Placement) and answer.exclusive


def node_rows(found: Survey) -> list[Row]:
    """One row per node: its CPUs, committed load, memory and measured load."""
    measured = {} if found.measured is None else found.measured.node_load
    return [
        {
            "node": node.id,
            "cpus": str(node.cpus),
            "load": found.load_now.get(node.id),
            "memory_bytes": node.memory_bytes,
            "free_bytes": node.free_bytes,
            "measured_load": rounded(measured.get(node.id)),
        }
        for node in found.machine.nodes
    ]
